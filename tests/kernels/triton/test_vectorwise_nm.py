"""The Triton product that gathers the inputs of blocks of outputs."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from lightning_nm.kernels import vectorwise_nm as layouts
from lightning_nm.kernels.triton import vectorwise_nm
from lightning_nm.kernels.triton.vectorwise_nm import Tile
from lightning_nm.patterns import NM, Block1xN
from tests.kernels.test_vectorwise_nm import PATTERNS, shared
from tests.kernels.triton.ahead_of_time import SHARED_MEMORY, Binary, Request, compiled
from tests.kernels.triton.device import DEVICE

pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in .*")  # rows of x that nobody asks for
CASES = [(64, 16), (64, 64), (64, 4096), (128, 16), (128, 4096), (32, 16), (32, 4096)]
"""Outputs of a block, and rows of x."""


@pytest.mark.gpu
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize(("outputs", "inputs", "batch"), [(128, 304, 1), (256, 1040, 17), (128, 64, 300)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_against_float64(pattern: NM | Block1xN, outputs: int, inputs: int, batch: int, dtype: torch.dtype) -> None:
    """Every size of blocks, inputs split among programs, bias."""
    rows = shared(outputs, inputs, pattern, dtype)
    x, bias = torch.randn(batch, inputs).to(dtype), torch.randn(outputs).to(dtype)
    expected = x.double() @ rows.double().T + bias.double()
    for block in layouts.ROWS:
        packed = [tensor.to(DEVICE) for tensor in layouts.pack(rows, block)]
        out = vectorwise_nm.matmul(x.to(DEVICE), *packed, bias.to(DEVICE), outputs)
        assert out.dtype == dtype
        torch.testing.assert_close(out.double().cpu(), expected, atol=0.05, rtol=0.01)


@pytest.mark.gpu
@pytest.mark.parametrize("bias", [False, True])
def test_outputs_that_fill_no_block(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing beyond the last is told; with one program for all inputs bias and activation are applied inside."""
    rows, x = shared(70, 304, NM(1, 4), torch.bfloat16), torch.randn(5, 304).bfloat16()
    given = torch.randn(70).bfloat16() if bias else None
    packed = [tensor.to(DEVICE) for tensor in layouts.pack(rows, 64)]
    expected = x.double() @ rows.double().T + (0 if given is None else given.double())
    for programs in (1, 264):
        monkeypatch.setattr(vectorwise_nm, "_PROGRAMS", programs)
        out = vectorwise_nm.matmul(x.to(DEVICE), *packed, None if given is None else given.to(DEVICE), 70, "relu")
        assert out.shape == (5, 70)
        torch.testing.assert_close(out.double().cpu(), expected.relu(), atol=0.05, rtol=0.01)


@pytest.fixture(scope="module")
def binaries() -> dict[tuple[int, int, int], Binary]:
    """By outputs of a block, rows of x and capability."""
    made, requests = [], []
    for rows, batch in CASES:
        columns, warps, stages = Tile.of(rows, batch)
        pointers = {"x_ptr": "*bf16", "values_ptr": "*bf16", "inputs_ptr": "*i32", "bias_ptr": "*bf16"}
        signature = {
            **pointers,
            "out_ptr": "*bf16",
            "outputs": "i32",
            "batch": "i32",
            "columns": "i32",
            "length": "i32",
        }
        tile = {"ROWS": rows, "COLUMNS": columns, "STEP": layouts.STEP}
        constants = {**tile, "HAS_BIAS": True, "ACTIVATION": "gelu", "INTERPRETED": False}
        for capability in SHARED_MEMORY:
            made.append((rows, batch, capability))
            requests.append(Request(vectorwise_nm.__name__, signature, constants, capability, warps, stages))
    return dict(zip(made, compiled(requests)))


@pytest.mark.parametrize("capability", SHARED_MEMORY)
@pytest.mark.parametrize("case", CASES)
def test_machine_code(binaries, case: tuple[int, int], capability: int) -> None:
    """No spills, shared memory that fits, its tensor cores, inputs and weights copied past the registers."""
    binary = binaries[(*case, capability)]
    assert binary.spills == 0
    assert binary.shared <= SHARED_MEMORY[capability]
    rows, batch = case
    hopper = capability >= 90 and (rows >= 64 or batch >= 64)
    assert binary.loop["HGMMA" if hopper else "HMMA"] > 0
    if rows >= 64:
        assert binary.loop["LDGSTS"] > binary.loop.get("LDG", 0)
