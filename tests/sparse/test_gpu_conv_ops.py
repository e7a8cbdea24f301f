"""The operators that convolve with packed weights on a GPU; without one Triton interprets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_nm.kernels import on_gpu, vectorwise_nm
from lightning_nm.kernels.activation import activated
from lightning_nm.kernels.convolution import Convolution
from lightning_nm.patterns import NM
from lightning_nm.sparse.gpu_backends import matrix, whole_groups
from lightning_nm.sparse.ops import ops
from tests.kernels.triton.convolutions import exact, images
from tests.kernels.triton.device import DEVICE

NAMES = ["bitplane_conv", "vectorwise_conv"]
OUTPUTS, INPUTS = 70, 16
CONVOLUTION = Convolution((1, 2), (2, 1), (1, 0), (1, 2), 1)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:.* encountered in .*"),  # pixels that nobody asks for
]


def call(name: str, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Any, list[Any]]:
    """(filters as a matrix, operator, what comes after x)"""
    torch.manual_seed(0)
    weight = torch.randn(OUTPUTS, INPUTS, *CONVOLUTION.kernel)
    weight = torch.where(NM(2, 4).mask(weight), weight, 0.0).to(dtype)
    rows, mask = whole_groups(matrix(weight, 1), 2, 4)
    bias = torch.randn(OUTPUTS).to(dtype)
    packed = {
        "bitplane_conv": lambda: [*on_gpu.pack_bitplane(rows, mask, 2, 4, 2), bias, 4, OUTPUTS, INPUTS, *CONVOLUTION],
        "vectorwise_conv": lambda: [*vectorwise_nm.pack(rows, 64), bias, OUTPUTS, INPUTS, *CONVOLUTION],
    }[name]()
    return rows, getattr(ops, name), [each.to(DEVICE) if isinstance(each, Tensor) else each for each in packed]


def image(dtype: torch.dtype = torch.bfloat16, channels_last: bool = True) -> Tensor:
    return images((2, INPUTS, 4, 5), dtype, channels_last).to(DEVICE)


@pytest.mark.parametrize("name", NAMES)
def test_operands_of_any_strides(name: str) -> None:
    """A bias that is a slice of another, and packed tensors that lie otherwise."""
    _, operator, packed = call(name)
    lying = [each.mT.contiguous().mT if isinstance(each, Tensor) and each.dim() > 1 else each for each in packed]
    lying[2] = torch.stack((packed[2], packed[2] + 1), 1)[:, 0]
    x = image()
    assert torch.equal(operator(x, *lying), operator(x, *packed))


@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name: str) -> None:
    """Schema, fake tensors and tracing hold what torch demands of them, strides too."""
    _, operator, packed = call(name)
    torch.library.opcheck(operator.default, (image()[:1], *packed, "gelu"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("dtype", "channels_last"), [(torch.bfloat16, True), (torch.float16, False)])
@pytest.mark.parametrize("activation", ["none", "silu"])
def test_any_image(name: str, dtype: torch.dtype, channels_last: bool, activation: str) -> None:
    """In the memory format of x; of no images there is no result."""
    rows, operator, packed = call(name, dtype)
    x = image(dtype, channels_last)
    out = operator(x, *packed, activation)
    expected = activated(exact(x.cpu(), rows, packed[2].cpu(), CONVOLUTION), activation)
    torch.testing.assert_close(out.double().cpu(), expected, atol=0.05, rtol=0.02)
    assert out.is_contiguous() != channels_last
    assert operator(x[:0], *packed, activation).shape == (0, *out.shape[1:])


@pytest.mark.parametrize("name", NAMES)
def test_compiled(name: str) -> None:
    """One graph, the same numbers, with an activation and without; under autocast x is cast."""
    rows, operator, packed = call(name)

    class Layer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
                return operator(x, *packed, activation="relu") + operator(x, *packed)

    x = image()
    with torch.no_grad():
        out = torch.compile(Layer(), fullgraph=True, backend="aot_eager")(x.float())
    expected = exact(x.cpu(), rows, packed[2].cpu(), CONVOLUTION)
    torch.testing.assert_close(out.double().cpu(), expected + expected.relu(), atol=0.1, rtol=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_what_does_not_fit_is_refused(name: str) -> None:
    """Before any kernel reads: other images, shapes, dtypes, devices, convolutions and activations; gradients."""
    _, operator, packed = call(name)
    x, first = image(), next(at for at, each in enumerate(packed) if isinstance(each, tuple))
    for other in (x[:, :12], x[:, :, :, 0], x[:, :, :, :1], x.half()):
        with pytest.raises(ValueError):
            operator(other, *packed)
    for at in range(3):
        for wrong in (packed[at][..., :-1], packed[at].to("meta")):
            with pytest.raises(ValueError):
                operator(x, *packed[:at], wrong, *packed[at + 1 :])
    for at, sizes in ((0, (2,)), (1, (0, 1)), (2, (-1, 0)), (3, (1, 1, 1)), (4, 3)):
        with pytest.raises(ValueError):
            operator(x, *packed[: first + at], sizes, *packed[first + at + 1 :])
    with pytest.raises(ValueError, match="unknown activation 'swish'"):
        operator(x, *packed, "swish")
    with pytest.raises(RuntimeError, match="has no gradient"):
        operator(x.requires_grad_(), *packed)


@pytest.mark.parametrize("index", [-1, 10**9])
def test_corrupt_indices_read_nothing_beyond_x(index: int) -> None:
    """Some numbers, and no crash."""
    _, operator, packed = call("vectorwise_conv")
    packed[1].fill_(index)
    assert operator(image(), *packed).shape == (2, OUTPUTS, 3, 3)


@pytest.mark.parametrize("name", NAMES)
def test_without_triton(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain torch convolves."""
    monkeypatch.setattr(on_gpu, "no_triton", lambda: "triton is not installed")
    on_gpu._products.cache_clear()
    rows, operator, packed = call(name)
    x = image()
    out = operator(x, *packed)
    assert "triton" not in on_gpu._products(name, x.is_cuda).__name__
    on_gpu._products.cache_clear()
    torch.testing.assert_close(
        out.double().cpu(), exact(x.cpu(), rows, packed[2].cpu(), CONVOLUTION), atol=0.1, rtol=0.02
    )
