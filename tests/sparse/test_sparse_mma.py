"""2:4 weights on sparse tensor cores. Without a card that proves itself, plain torch multiplies, and nobody is told to.

What the kernel does is shown by tests/kernels/triton/test_sparse_mma.py.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_nm.kernels import on_gpu, sparse_mma
from lightning_nm.patterns import NM
from lightning_nm.sparse import BACKENDS
from lightning_nm.sparse.gpu_backends import Gpu, whole_groups
from lightning_nm.sparse.ops import ops
from tests.kernels.triton.device import DEVICE

KERNEL = "lightning_nm.kernels.triton.sparse_mma"
OUTPUTS, INPUTS = 70, 148


@pytest.fixture(autouse=True)
def nothing_remembered() -> Iterator[None]:
    """What was found out for one test says nothing for the next."""
    on_gpu.no_sparse_mma.cache_clear()
    yield
    on_gpu.no_sparse_mma.cache_clear()


def weight(pattern: NM = NM(2, 4), shape: tuple[int, int] = (OUTPUTS, INPUTS)) -> Tensor:
    torch.manual_seed(0)
    dense = torch.randn(shape)
    return torch.where(pattern.mask(dense), dense, 0.0).bfloat16().to(DEVICE)


def near(out: Tensor, exact: Tensor) -> None:
    torch.testing.assert_close(out.double(), exact, atol=0.05, rtol=0.02)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(INPUTS,), (5, INPUTS), (2, 3, INPUTS), (0, INPUTS), (70, INPUTS)])
def test_the_operator(shape: tuple[int, ...]) -> None:
    """With bias, and x of any strides."""
    held, bias = weight(), torch.randn(OUTPUTS, device=DEVICE).bfloat16()
    packed = (*on_gpu.pack_sparse_mma(*whole_groups(held, 2, 4)), bias, OUTPUTS, INPUTS)
    x = torch.randn(shape, device=DEVICE).bfloat16()
    x = x.mT.contiguous().mT if x.dim() > 1 else x
    exact = F.linear(x.double(), held.double(), bias.double())
    near(ops.sparse_mma_linear(x, *packed), exact)
    near(ops.sparse_mma_linear(x, *packed, "relu"), exact.relu())


@pytest.mark.gpu
def test_opcheck() -> None:
    """Schema, fake tensors and tracing hold what torch demands of them."""
    packed = (*on_gpu.pack_sparse_mma(*whole_groups(weight(), 2, 4)), None, OUTPUTS, INPUTS)
    torch.library.opcheck(ops.sparse_mma_linear.default, (torch.randn(2, 3, INPUTS, device=DEVICE).bfloat16(), *packed))


@pytest.mark.gpu
def test_what_does_not_fit_is_refused() -> None:
    """Before any kernel reads: other inputs, shapes, dtypes; gradients too."""
    values, positions = on_gpu.pack_sparse_mma(*whole_groups(weight(), 2, 4))
    x, sizes = torch.randn(3, INPUTS, device=DEVICE).bfloat16(), (None, OUTPUTS, INPUTS)
    for wrong in (
        (x[:, :-4], values, positions, *sizes),
        (x.half(), values, positions, *sizes),
        (x, values[..., :-1], positions, *sizes),
        (x, values, positions[:-1], *sizes),
        (x, values, positions.long(), *sizes),
        (x, values, positions, None, OUTPUTS + 32, INPUTS),
    ):
        with pytest.raises(ValueError):
            ops.sparse_mma_linear(*wrong)
    with pytest.raises(RuntimeError, match="has no gradient"):
        ops.sparse_mma_linear(x.requires_grad_(), values, positions, *sizes)


@pytest.mark.gpu
def test_corrupt_positions_read_nothing_beyond() -> None:
    """Some numbers, and no crash."""
    values, positions = on_gpu.pack_sparse_mma(*whole_groups(weight(), 2, 4))
    x = torch.randn(3, INPUTS, device=DEVICE).bfloat16()
    for word in (-1, 0, 0x12345678):
        out = ops.sparse_mma_linear(x, values, positions.fill_(word), None, OUTPUTS, INPUTS)
        assert out.shape == (3, OUTPUTS)


@pytest.mark.parametrize(
    ("pattern", "rows", "reason"),
    [
        (NM(2, 4), 128, "on trial"),
        (NM(1, 16), 8, "on trial"),
        (NM(4, 8), 8, "sparse tensor cores multiply 2:4 weights only"),
        (NM(2, 4), 129, "more than 128 rows"),
    ],
)
def test_what_it_can(monkeypatch: pytest.MonkeyPatch, pattern: NM, rows: int, reason: str) -> None:
    """By the weight's zeros, whatever its pattern is called; the card is asked last."""
    monkeypatch.setattr(Gpu, "_no_cuda", lambda self, weight: None)
    monkeypatch.setattr(on_gpu, "no_triton", lambda: None)
    monkeypatch.setattr(on_gpu, "no_sparse_mma", lambda device, dtype: "on trial")
    held = weight(pattern, (64, 128))
    assert BACKENDS["sparse_mma"].why_not(held, pattern, torch.empty(rows, 128, device=DEVICE).bfloat16()) == reason


class Kernel(ModuleType):
    """In the place of Triton's."""

    def __init__(self, reason: str | None) -> None:
        super().__init__(KERNEL)
        self.reason, self.tested = reason, 0

    def self_test(self, device: torch.device, dtype: torch.dtype) -> str | None:
        self.tested += 1
        return self.reason

    def matmul(self, *arguments: Any) -> Tensor:
        return sparse_mma.matmul(*arguments) + 1.0


class Card:
    """A device and x on it, as far as they are looked at."""

    type, index = "cuda", 0


@pytest.mark.parametrize("reason", [None, "it is wrong"])
def test_the_kernel_is_used_only_where_it_proved_itself(monkeypatch: pytest.MonkeyPatch, reason: str | None) -> None:
    """Asked once for each card and dtype; elsewhere plain torch multiplies."""
    kernel, card = Kernel(reason), Card()
    monkeypatch.setitem(sys.modules, KERNEL, kernel)
    monkeypatch.setattr(on_gpu, "no_triton", lambda: None)
    monkeypatch.setattr(torch.cuda, "device", lambda device: on_gpu.on_device(torch.empty(0)))
    real = on_gpu.no_sparse_mma
    monkeypatch.setattr(on_gpu, "no_sparse_mma", lambda device, dtype: real(card, dtype))
    held = weight().cpu()
    packed = on_gpu.pack_sparse_mma(*whole_groups(held, 2, 4))
    x = torch.randn(3, INPUTS).bfloat16()
    for _ in range(2):
        out = on_gpu.sparse_tensor_cores(x, *packed, None, OUTPUTS)
        near(out, x.double() @ held.double().T + (reason is None))
    assert kernel.tested == 1
    assert real(card, torch.float16) == reason
    assert kernel.tested == 2


def test_why_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """No card, no triton, a triton without Gluon."""
    ask, card = on_gpu.no_sparse_mma.__wrapped__, Card()
    assert ask(torch.device("cpu"), torch.float16) == "sparse tensor cores are those of CUDA cards"
    monkeypatch.setattr(on_gpu, "no_triton", lambda: "triton is not installed")
    assert ask(card, torch.float16) == "triton is not installed"
    monkeypatch.setattr(on_gpu, "no_triton", lambda: None)
    monkeypatch.setitem(sys.modules, KERNEL, None)
    assert ask(card, torch.float16).startswith("this triton has no Gluon as the kernel wants it (ModuleNotFoundError")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")
@pytest.mark.parametrize("batch", [1, 17, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_on_a_card(batch: int, dtype: torch.dtype) -> None:
    """The backend, if the card lets it."""
    held = weight(shape=(256, 512)).to(dtype)
    x, bias = torch.randn(batch, 512, device="cuda").to(dtype), torch.randn(256, device="cuda").to(dtype)
    if (reason := BACKENDS["sparse_mma"].why_not(held, NM(2, 4), x)) is not None:
        pytest.skip(reason)
    out = BACKENDS["sparse_mma"].hold(held, NM(2, 4), 1).linear(x, bias)
    near(out, F.linear(x.double(), held.double(), bias.double()))
