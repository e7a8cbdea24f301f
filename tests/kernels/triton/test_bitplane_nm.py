"""The Triton product that decodes bit planes."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from lightning_nm.kernels import bitplane_nm as layouts
from lightning_nm.kernels.triton import bitplane_nm
from tests.kernels.test_bitplane_nm import PATTERNS
from tests.kernels.test_gathered_nm import sparse
from tests.kernels.triton.ahead_of_time import SHARED_MEMORY, Binary, Request, compiled
from tests.kernels.triton.device import DEVICE

pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in .*")  # rows of x that nobody asks for
BUDGET = {(2, 4, 16): 2.6, (2, 4, 64): 2.6, (1, 4, 16): 1.8, (1, 4, 64): 1.8, (2, 8, 16): 2.6, (1, 8, 16): 1.8}
"""Integer instructions per dense weight, by N, M and rows of x: Hopper affords 6.9 while dense weights stream."""


@pytest.mark.gpu
@pytest.mark.parametrize(("n", "m"), PATTERNS)
@pytest.mark.parametrize(("outputs", "groups", "batch"), [(70, 37, 1), (64, 128, 17), (1, 1, 70)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_against_float64(n: int, m: int, outputs: int, groups: int, batch: int, dtype: torch.dtype) -> None:
    """Ragged sizes, bias, inputs split among programs."""
    rows, mask = sparse(outputs, groups * m, n, m, dtype)
    x, bias = torch.randn(batch, groups * m).to(dtype), torch.randn(outputs).to(dtype)
    expected = x.double() @ rows.double().T + bias.double()
    packed = [tensor.to(DEVICE) for tensor in layouts.pack(rows, mask, n, m)]
    out = bitplane_nm.matmul(x.to(DEVICE), *packed, bias.to(DEVICE), m, outputs)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double().cpu(), expected, atol=0.05, rtol=0.01)


@pytest.mark.gpu
@pytest.mark.parametrize("programs", [1, 264])
def test_activation(programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the whole sum, by the one program that has it or where parts are added up."""
    monkeypatch.setattr(bitplane_nm, "_PROGRAMS", programs)
    rows, mask = sparse(9, 512, 1, 4, torch.float16)
    x = torch.randn(3, 512).half()
    packed = [tensor.to(DEVICE) for tensor in layouts.pack(rows, mask, 1, 4)]
    out = bitplane_nm.matmul(x.to(DEVICE), *packed, None, 4, 9, "relu")
    torch.testing.assert_close(out.double().cpu(), (x.double() @ rows.double().T).relu(), atol=0.05, rtol=0.01)


@pytest.fixture(scope="module")
def binaries() -> dict[tuple[int, int, int, int], tuple[Binary, float]]:
    """By N, M, rows of x and capability: the machine code, and dense weights of a thread in one turn of the loop."""
    made, dense, requests = [], [], []
    for n, m, columns in BUDGET:
        at_once = layouts.spans_at_once(m)
        tile = {"ROWS": layouts.ROWS, "COLUMNS": columns, "SPANS": at_once}
        ending = {"HAS_BIAS": True, "ACTIVATION": "relu", "INTERPRETED": False}
        constants = {"N": n, "M": m, "BITS": (m - 1).bit_length(), **tile, **ending}
        pointers = {"x_ptr": "*bf16", "values_ptr": "*i32", "planes_ptr": "*i32", "bias_ptr": "*bf16"}
        signature = {**pointers, "out_ptr": "*bf16", "outputs": "i32", "batch": "i32", "spans": "i32"}
        for capability in SHARED_MEMORY:
            made.append((n, m, columns, capability))
            dense.append(layouts.ROWS * at_once * layouts.GROUPS * m / (32 * bitplane_nm.WARPS))
            request = Request(
                bitplane_nm.__name__, signature, constants, capability, bitplane_nm.WARPS, bitplane_nm.STAGES
            )
            requests.append(request)
    return dict(zip(made, zip(compiled(requests), dense)))


@pytest.mark.parametrize("case", BUDGET)
def test_machine_code_for_hopper(binaries, case: tuple[int, int, int]) -> None:
    """No spills, shared memory that fits, its tensor cores, integer instructions within the budget."""
    binary, dense = binaries[(*case, 90)]
    assert binary.spills == 0
    assert binary.shared <= SHARED_MEMORY[90]
    assert binary.loop["HGMMA"] > 0
    assert binary.integer() / dense <= BUDGET[case]


@pytest.mark.parametrize("case", BUDGET)
def test_machine_code_for_ampere(binaries, case: tuple[int, int, int]) -> None:
    """No spills, shared memory that fits, its tensor cores."""
    binary, _ = binaries[(*case, 80)]
    assert binary.spills == 0
    assert binary.shared <= SHARED_MEMORY[80]
    assert binary.loop["HMMA"] > 0
