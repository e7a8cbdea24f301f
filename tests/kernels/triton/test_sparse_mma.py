"""The product on sparse tensor cores. Without a card its PTX is run by a processor, after what NVIDIA says of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

pytest.importorskip("triton")
pytest.importorskip("triton.experimental.gluon")

from lightning_nm.kernels import sparse_mma as layouts
from lightning_nm.kernels.activation import activated
from lightning_nm.kernels.triton import sparse_mma
from lightning_nm.kernels.triton.sparse_mma import Share
from tests.kernels import mma_sp
from tests.kernels.test_gathered_nm import sparse
from tests.kernels.triton import ptx
from tests.kernels.triton.ahead_of_time import Binary, Request, compiled
from tests.kernels.triton.device import DEVICE
from tests.kernels.triton.ptx import run

BUDGET = {1: 0.8, 2: 0.8, 4: 1.0, 8: 1.4}
"""Instructions per dense weight, by blocks of 8 rows of x: Hopper issues 13.8 while dense weights stream."""
REGISTERS, CARD = 65536, 132
"""Of a multiprocessor, and multiprocessors of a card."""


class Case(NamedTuple):
    """A kernel: everything that is compiled into it."""

    blocks: int
    ordered: bool
    kind: str
    parts: bool
    capability: int = 90

    def request(self) -> Request:
        out = "fp32" if self.parts else {"bf16": "bf16", "f16": "fp16"}[self.kind]
        pointers = {"x_ptr": "*i32", "values_ptr": "*i32", "positions_ptr": "*i32", "bias_ptr": "*bf16"}
        if self.kind == "f16":
            pointers["bias_ptr"] = "*fp16"
        sizes = dict.fromkeys(("outputs", "batch", "high", "wide"), "i32")
        warps = Share.of(8 * self.blocks).warps
        constants = {"TYPE": self.kind, "BLOCKS": self.blocks, "ORDERED": self.ordered, "HAS_BIAS": not self.parts}
        signature = {**pointers, "out_ptr": f"*{out}", **sizes}
        return Request(sparse_mma.__name__, signature, {**constants, "WARPS": warps}, self.capability, warps)


CASES = [
    # all that the self-test meets with bfloat16
    Case(1, False, "bf16", parts=True),
    Case(1, True, "bf16", parts=False),
    Case(2, True, "bf16", parts=False),
    Case(4, True, "bf16", parts=True),
    Case(8, True, "bf16", parts=True),
    Case(1, True, "f16", parts=False),
    Case(8, True, "bf16", parts=True, capability=80),
]


@pytest.fixture(scope="module")
def binaries() -> dict[Case, Binary]:
    return dict(zip(CASES, compiled([case.request() for case in CASES])))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_machine_code(binaries, case: Case) -> None:
    """Sparse tensor cores fed by wide loads alone: no spills, shared memory, barriers or shuffles; few instructions."""
    binary, share = binaries[case], Share.of(8 * case.blocks)
    assert binary.spills == binary.shared == 0
    assert not binary.instructions.keys() & {"BAR", "SHFL", "LDS", "STS", "LDSM", "DEPBAR"}
    type_ = ".BF16" if case.kind == "bf16" else ""
    assert binary.kinds[f"HMMA.SP.16832.F32{type_}"] == 8 * case.blocks
    assert sum(n for name, n in binary.kinds.items() if name.startswith("LDG") and name.endswith(".128")) == (
        9 + 4 * case.blocks * case.ordered
    )
    dense = layouts.ROWS * layouts.INPUTS / 32
    assert binary.integer() / dense <= 0.2
    assert sum(binary.loop.values()) / dense <= BUDGET[case.blocks]
    resident = REGISTERS // (-(-binary.registers // 8) * 8 * 32 * share.warps)
    assert resident * CARD >= share.programs  # all of them at a time


class OnPaper:
    """In the kernel's place: its PTX, run by this processor."""

    def __init__(self, binaries: dict[Case, Binary]) -> None:
        self.binaries = binaries

    def __getitem__(self, grid: tuple[int, int, int]) -> Callable[..., None]:
        def launch(*arguments: Any, num_warps: int, **constants: Any) -> None:
            out = arguments[4]
            parts = out.dtype == torch.float32
            case = Case(constants["BLOCKS"], constants["ORDERED"], constants["TYPE"], parts)
            assert constants == case.request().constants
            assert num_warps == constants["WARPS"]
            assert len(out) == grid[2]
            held = [bits(each) if isinstance(each, Tensor) else each for each in arguments]
            run(self.binaries[case].ptx, grid, 32 * num_warps, held)

        return launch


@pytest.fixture
def on_paper(binaries: dict[Case, Binary], monkeypatch: pytest.MonkeyPatch) -> None:
    def finish(parts: Tensor, bias: Tensor | None, outputs: int, dtype: torch.dtype, activation: str) -> Tensor:
        assert parts.shape[2] == outputs
        return activated(parts.sum(0) + (0.0 if bias is None else bias.float()), activation).to(dtype)

    monkeypatch.setattr(sparse_mma, "kernel", OnPaper(binaries))
    monkeypatch.setattr(sparse_mma, "finish", finish)


@pytest.mark.usefixtures("on_paper")
def test_self_test() -> None:
    """Every lane's loads, instructions and stores, as PTX has them, make the products, inside what they are given."""
    assert sparse_mma.self_test(torch.device("cpu"), torch.bfloat16) is None


@pytest.mark.usefixtures("on_paper")
def test_half_precision() -> None:
    """Is another instruction."""
    rows, mask = sparse(33, 300, 2, 4, torch.float16)
    x, bias = torch.randn(5, 300).half(), torch.randn(33).half()
    out = sparse_mma.product(x, *layouts.pack(rows, mask), bias, 33, 1)
    torch.testing.assert_close(out.double(), x.double() @ rows.double().T + bias.double(), atol=1e-2, rtol=1e-3)


@pytest.mark.usefixtures("on_paper")
def test_activation() -> None:
    """Of the float32 sum, also where one program has all of it."""
    rows, mask = sparse(33, 256, 2, 4, torch.bfloat16)
    x, bias = torch.randn(5, 256).bfloat16(), torch.randn(33).bfloat16()
    out = sparse_mma.product(x, *layouts.pack(rows, mask), bias, 33, 1, "silu")
    exact = F.silu(x.double() @ rows.double().T + bias.double())
    torch.testing.assert_close(out.double(), exact, atol=1e-2, rtol=5e-3)


@pytest.mark.usefixtures("on_paper")
def test_self_test_on_a_card_that_does_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elements of another lane, another pair of lanes for the positions, or an error: a reason not to use it."""

    def exchanged(values: Any, *rest: Any) -> Any:
        return mma_sp.mma_sp(values[[1, 0, *range(2, 32)]], *rest)

    def selected(a: Any, b: Any, c: Any, positions: Any, selector: int, kind: str) -> Any:
        return mma_sp.mma_sp(a, b, c, positions, 1 - selector, kind)

    def refused(*arguments: Any) -> Any:
        raise RuntimeError("no such instruction\nand more")

    for otherwise, reason in (
        (exchanged, r"disagree with dense at 5 x \[160, 640\]"),
        (selected, r"disagree with dense at 5 x \[160, 640\]"),
        (refused, r"do not run \(RuntimeError: no such instruction\)$"),
    ):
        monkeypatch.setattr(ptx, "mma_sp", otherwise)
        told = sparse_mma.self_test(torch.device("cpu"), torch.bfloat16)
        assert told is not None
        assert re.search(reason, told)


@pytest.mark.parametrize(
    ("batch", "outputs", "inputs", "parts"),
    [(1, 14336, 4096, 4), (8, 64, 256, 2), (64, 14336, 4096, 2), (65, 14336, 4096, 1), (16, 70, 4096, 32)],
)
def test_parts(monkeypatch: pytest.MonkeyPatch, batch: int, outputs: int, inputs: int, parts: int) -> None:
    """As many as fill a card, and not more than tiles."""
    seen = []
    monkeypatch.setattr(sparse_mma, "product", lambda *given: seen.append(given[5]))
    values = torch.empty(*layouts.tiles(outputs, inputs), 0)
    sparse_mma.matmul(torch.empty(batch, inputs), values, values, None, outputs)
    assert seen == [parts]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_self_test_on_this_card(dtype: torch.dtype) -> None:
    """Nobody may use the kernel where this fails."""
    assert sparse_mma.self_test(torch.device("cuda", torch.cuda.current_device()), dtype) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")
@pytest.mark.parametrize(("outputs", "inputs"), [(70, 148), (1024, 4096), (1, 4)])
@pytest.mark.parametrize("batch", [1, 8, 17, 64, 130])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_on_a_card(outputs: int, inputs: int, batch: int, dtype: torch.dtype) -> None:
    """Against exact products, with a bias and without, and of x that begins at any place."""
    rows, mask = (each.to(DEVICE) for each in sparse(outputs, inputs, 2, 4, dtype))
    packed = layouts.pack(rows, mask)
    x = torch.randn(batch * inputs + 1, device=DEVICE).to(dtype)[1:].view(batch, -1)
    for bias in (None, torch.randn(outputs, device=DEVICE).to(dtype)):
        for given in (x, x.clone()):
            out = sparse_mma.matmul(given, *packed, bias, outputs)
            exact = x.double() @ rows.double().T + (0.0 if bias is None else bias.double())
            assert out.dtype == dtype
            torch.testing.assert_close(out.double(), exact, atol=0.05, rtol=0.01)


def bits(tensor: Tensor) -> np.ndarray:
    """The same memory, of whatever dtype."""
    return tensor.view(-1).view(torch.uint8).numpy()
