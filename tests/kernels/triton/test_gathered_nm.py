"""The Triton product that gathers its inputs."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from lightning_nm.kernels import gathered_nm as layouts
from lightning_nm.kernels.gathered_nm import Layout
from lightning_nm.kernels.triton import gathered_nm
from tests.kernels.test_gathered_nm import PATTERNS, sparse
from tests.kernels.triton.ahead_of_time import SHARED_MEMORY, Binary, Request, compiled
from tests.kernels.triton.device import DEVICE

BUDGET = {(2, 4, 1): 3.2, (1, 4, 1): 1.6, (1, 8, 1): 0.9, (2, 4, 4): 3.2, (1, 4, 8): 1.9}
"""Integer instructions per dense weight, by N, M and batch: Hopper affords 6.9 while dense weights stream."""


@pytest.mark.gpu
@pytest.mark.parametrize(("n", "m"), PATTERNS)
@pytest.mark.parametrize(("outputs", "groups", "batch"), [(9, 37, 3), (4, 64, 1), (1, 1, 8)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_against_float64(n: int, m: int, outputs: int, groups: int, batch: int, dtype: torch.dtype) -> None:
    """Ragged sizes, bias."""
    rows, mask = sparse(outputs, groups * m, n, m, dtype)
    layout = Layout.of(n, m, groups * m)
    assert layout is not None
    x, bias = torch.randn(batch, groups * m).to(dtype), torch.randn(outputs).to(dtype)
    expected = x.double() @ rows.double().T + bias.double()
    packed = [tensor.to(DEVICE) for tensor in layouts.pack(rows, mask, layout)]
    out = gathered_nm.matmul(x.to(DEVICE), *packed, bias.to(DEVICE), layout)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double().cpu(), expected, atol=0.05, rtol=0.01)


@pytest.mark.gpu
@pytest.mark.parametrize("batch", range(1, layouts.LARGEST_BATCH + 1))
def test_any_batch(batch: int) -> None:
    """Up to the largest that it is made for, without a bias."""
    rows, mask = sparse(4, 64, 2, 4, torch.float16)
    layout = Layout.of(2, 4, 64)
    assert layout is not None
    x = torch.randn(batch, 64).half()
    packed = [tensor.to(DEVICE) for tensor in layouts.pack(rows, mask, layout)]
    out = gathered_nm.matmul(x.to(DEVICE), *packed, None, layout)
    torch.testing.assert_close(out.double().cpu(), x.double() @ rows.double().T, atol=0.02, rtol=0.01)


@pytest.mark.gpu
@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (1, 16)])
def test_inputs_split_among_programs(n: int, m: int) -> None:
    """Few outputs and many chunks: each program sums a part, and the sum of all is activated."""
    inputs = 1090 * m
    rows, mask = sparse(3, inputs, n, m, torch.bfloat16)
    layout = Layout.of(n, m, inputs)
    assert layout is not None
    assert gathered_nm.splits(3, layout.chunks) == layout.chunks > 1
    x = torch.randn(2, inputs).bfloat16()
    packed = [tensor.to(DEVICE) for tensor in layouts.pack(rows, mask, layout)]
    out = gathered_nm.matmul(x.to(DEVICE), *packed, None, layout, "relu")
    torch.testing.assert_close(out.double().cpu(), (x.double() @ rows.double().T).relu(), atol=0.5, rtol=0.01)


@pytest.mark.gpu
def test_more_rows_than_a_kernel_is_made_for() -> None:
    """They are taken 8 at a time: a kernel of 36 would take minutes to compile."""
    rows, mask = sparse(6, 64, 2, 4, torch.bfloat16)
    layout = Layout.of(2, 4, 64)
    x = torch.randn(17, 64).bfloat16()
    packed = [tensor.to(DEVICE) for tensor in layouts.pack(rows, mask, layout)]
    out = gathered_nm.matmul(x.to(DEVICE), *packed, None, layout)
    torch.testing.assert_close(out.double().cpu(), x.double() @ rows.double().T, atol=0.05, rtol=0.01)


@pytest.fixture(scope="module")
def binaries() -> dict[tuple[int, int, int, int], tuple[Binary, float]]:
    """By N, M, batch and capability: the machine code, and dense weights of a thread in one turn of the loop."""
    made, dense, requests = [], [], []
    for n, m, batch in BUDGET:
        layout = Layout.of(n, m, 4096)
        assert layout is not None
        sizes = {"N": n, "M": m, "BITS": layout.bits, "GROUPS": layout.groups, "WORDS": layout.words, "BATCH": batch}
        ending = {"HAS_BIAS": True, "ACTIVATION": "relu"}
        constants = {**sizes, "INPUTS": 4096, "BF16": True, "ROWS": gathered_nm.ROWS, **ending}
        pointers = {
            "x_ptr": "*bf16" if batch == 1 else "*fp32",
            "positions_ptr": "*i32",
            "values_ptr": "*i32",
            "bias_ptr": "*bf16",
        }
        signature = {**pointers, "out_ptr": "*bf16", "outputs": "i32", "chunks": "i32"}
        for capability in SHARED_MEMORY:
            made.append((n, m, batch, capability))
            dense.append(gathered_nm.ROWS * layout.words * layout.groups * m / (32 * gathered_nm.WARPS))
            requests.append(Request(gathered_nm.__name__, signature, constants, capability, gathered_nm.WARPS))
    return dict(zip(made, zip(compiled(requests), dense)))


@pytest.mark.parametrize("capability", SHARED_MEMORY)
@pytest.mark.parametrize("case", BUDGET)
def test_machine_code(binaries, case: tuple[int, int, int], capability: int) -> None:
    """No spills, shared memory that fits, no barrier where weights stream, integer instructions within the budget."""
    binary, dense = binaries[(*case, capability)]
    assert binary.spills == 0
    assert binary.shared <= SHARED_MEMORY[capability]
    assert binary.loop.get("BAR", 0) == 0
    assert binary.loop["FFMA"] > 0
    assert binary.integer() / dense <= BUDGET[case]
