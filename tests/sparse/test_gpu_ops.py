"""The operators that multiply packed weights on a GPU; without one Triton interprets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_nm.kernels import on_gpu, vectorwise_nm
from lightning_nm.kernels.activation import ACTIVATIONS, activated
from lightning_nm.kernels.gathered_nm import Layout
from lightning_nm.patterns import NM
from lightning_nm.sparse.gpu_backends import whole_groups
from lightning_nm.sparse.ops import ops
from tests.kernels.triton.device import DEVICE

NAMES = ["gathered_linear", "bitplane_linear", "vectorwise_linear"]
OUTPUTS, INPUTS = 70, 128
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:.* encountered in .*"),  # rows of x that nobody asks for
]


def call(name: str, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Any, list[Any]]:
    """(dense weight, operator, what comes after x)"""
    torch.manual_seed(0)
    weight = torch.randn(OUTPUTS, INPUTS)
    weight = torch.where(NM(2, 4).mask(weight), weight, 0.0).to(dtype)
    rows, mask = whole_groups(weight, 2, 4)
    bias = torch.randn(OUTPUTS).to(dtype)
    layout = Layout.of(2, 4, INPUTS)
    assert layout is not None
    packed = {
        "gathered_linear": lambda: [*on_gpu.pack_gathered(rows, mask, layout), bias, 2, 4, INPUTS],
        "bitplane_linear": lambda: [*on_gpu.pack_bitplane(rows, mask, 2, 4), bias, 4, OUTPUTS, INPUTS],
        "vectorwise_linear": lambda: [*vectorwise_nm.pack(rows, 64), bias, OUTPUTS, INPUTS],
    }[name]()
    on_device = [each.to(DEVICE) if isinstance(each, Tensor) else each for each in packed]
    return torch.cat((weight, bias[:, None]), 1).double(), getattr(ops, name), on_device


def exact(weight_and_bias: Tensor, x: Tensor) -> Tensor:
    return x.double().cpu() @ weight_and_bias[:, :-1].T + weight_and_bias[:, -1]


@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name: str) -> None:
    """Schema, fake tensors and tracing hold what torch demands of them."""
    _, operator, packed = call(name)
    x = torch.randn(3, 2, INPUTS, device=DEVICE).bfloat16()
    torch.library.opcheck(operator.default, (x, *packed, "gelu"))


@pytest.mark.parametrize("name", NAMES)
def test_operands_of_any_strides(name: str) -> None:
    """A bias that is a slice of another or one number expanded, and packed tensors that lie otherwise."""
    weight, operator, packed = call(name)
    x = torch.randn(3, INPUTS, device=DEVICE).bfloat16()
    lying = [each.mT.contiguous().mT if isinstance(each, Tensor) and each.dim() > 1 else each for each in packed]
    place = next(i for i, each in enumerate(packed) if isinstance(each, Tensor) and each.dim() == 1)
    for bias in (torch.randn(2 * OUTPUTS, device=DEVICE).bfloat16()[::2], x.new_ones(1).expand(OUTPUTS)):
        lying[place] = bias
        expected = x.double().cpu() @ weight[:, :-1].T + bias.double().cpu()
        torch.testing.assert_close(operator(x, *lying).double().cpu(), expected, atol=0.05, rtol=0.02)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(INPUTS,), (5, INPUTS), (2, 3, INPUTS), (0, INPUTS)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_any_batch(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """With bias, and x of any strides."""
    weight, operator, packed = call(name, dtype)
    x = torch.randn(shape, device=DEVICE).to(dtype)
    x = x.mT.contiguous().mT if x.dim() > 1 else x
    out = operator(x, *packed)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double().cpu(), exact(weight, x), atol=0.05, rtol=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_compiled(name: str) -> None:
    """One graph, the same numbers."""
    weight, operator, packed = call(name)

    class Layer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return operator(x, *packed, activation="relu") + operator(x, *packed)

    x = torch.randn(3, INPUTS, device=DEVICE).bfloat16()
    with torch.no_grad():
        out = torch.compile(Layer(), fullgraph=True, backend="aot_eager")(x)
    expected = exact(weight, x)
    torch.testing.assert_close(out.double().cpu(), expected + expected.relu(), atol=0.1, rtol=0.02)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(name: str, activation: str) -> None:
    """Of the product and its bias, and of no rows; one that nobody knows is refused."""
    weight, operator, packed = call(name, torch.float16)
    x = torch.randn(3, INPUTS, device=DEVICE).half()
    out = operator(x, *packed, activation)
    torch.testing.assert_close(out.double().cpu(), activated(exact(weight, x), activation), atol=0.01, rtol=0.005)
    assert operator(x[:0], *packed, activation).shape == (0, OUTPUTS)
    with pytest.raises(ValueError, match="unknown activation 'swish': one of none, relu"):
        operator(x, *packed, "swish")


@pytest.mark.parametrize("name", NAMES)
def test_autocast(name: str) -> None:
    """X is rounded to the weight's dtype; to another one nothing is read as what it is not."""
    weight, operator, packed = call(name)
    x = torch.randn(3, INPUTS, device=DEVICE)
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        out = operator(x, *packed)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double().cpu(), exact(weight, x), atol=0.1, rtol=0.02)
    with torch.autocast(DEVICE.type, dtype=torch.float16), pytest.raises(ValueError, match=r"float16 and .*bfloat16"):
        operator(x, *packed)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_refused(name: str) -> None:
    """Not zero in silence."""
    _, operator, packed = call(name)
    x = torch.randn(3, INPUTS, device=DEVICE).bfloat16().requires_grad_()
    with pytest.raises(RuntimeError, match="has no gradient"):
        operator(x, *packed)


@pytest.mark.parametrize("name", NAMES)
def test_what_does_not_fit_is_refused(name: str) -> None:
    """Before any kernel reads: other inputs, shapes, dtypes and devices."""
    _, operator, packed = call(name)
    x = torch.randn(3, INPUTS, device=DEVICE).bfloat16()
    for other in (x[:, :64], x[:, :-1], x.float()):
        with pytest.raises(ValueError):
            operator(other, *packed)
    for at in range(3):
        for wrong in (packed[at][..., :-1], packed[at].to("meta")):
            with pytest.raises(ValueError):
                operator(x, *packed[:at], wrong, *packed[at + 1 :])
    indices = next(at for at in range(2) if packed[at].dtype == torch.int32)
    with pytest.raises(ValueError, match="indices are int32"):
        operator(x, *packed[:indices], packed[indices].long(), *packed[indices + 1 :])


@pytest.mark.parametrize("name", ["gathered_linear", "vectorwise_linear"])
@pytest.mark.parametrize("index", [-1, 10**9])
def test_corrupt_indices_read_nothing_beyond_x(name: str, index: int) -> None:
    """Some numbers, and no crash."""
    _, operator, packed = call(name)
    which = next(each for each in packed if isinstance(each, Tensor) and each.dtype == torch.int32)
    which.fill_(index)
    assert operator(torch.randn(3, INPUTS, device=DEVICE).bfloat16(), *packed).shape == (3, OUTPUTS)


@pytest.mark.parametrize("name", NAMES)
def test_without_triton(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain torch multiplies."""
    monkeypatch.setattr(on_gpu, "no_triton", lambda: "triton is not installed")
    on_gpu._products.cache_clear()
    weight, operator, packed = call(name)
    x = torch.randn(3, INPUTS, device=DEVICE).bfloat16()
    out = operator(x, *packed)
    assert "triton" not in on_gpu._products(f"{name.removesuffix('_linear')}_nm", x.is_cuda).__name__
    on_gpu._products.cache_clear()
    torch.testing.assert_close(out.double().cpu(), exact(weight, x), atol=0.1, rtol=0.02)
