"""Convolutions with packed weights on a GPU as operators of torch: see `lightning_nm.sparse.gpu_ops`.

    torch.ops.lightning_nm.bitplane_conv(
        x, values, planes, bias, m, outputs, in_features, kernel, stride, padding, dilation, groups, activation)
    torch.ops.lightning_nm.vectorwise_conv(
        x, values, inputs, bias, outputs, in_features, kernel, stride, padding, dilation, groups, activation)

x is ``[B, C, *sizes]`` in one to three dimensions, whose memory format the result ``[B, O, *sizes]`` has. Weights are
packed as `lightning_nm.kernels.bitplane_conv` and `lightning_nm.kernels.vectorwise_conv` say, for filters of
``in_features`` channels: C, or those of a group. Groups have whole tiles (64 outputs), or whole blocks of outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from torch import Tensor

from lightning_nm.kernels import on_gpu
from lightning_nm.kernels.activation import activated
from lightning_nm.kernels.convolution import Convolution, memory_format
from lightning_nm.sparse.gpu_operands import check_bitplane_conv, check_vectorwise_conv
from lightning_nm.sparse.ops import register


def _bitplane(
    x: Tensor,
    values: Tensor,
    planes: Tensor,
    bias: Tensor | None,
    m: int,
    outputs: int,
    in_features: int,
    *sizes: Any,
) -> Tensor:
    convolution, activation = _convolution(*sizes)
    shape = check_bitplane_conv(x, values, planes, bias, m, outputs, in_features, convolution, activation)
    if not x.numel():
        return _of_nothing(x, bias, shape, activation)
    packed = values.contiguous(), planes.contiguous()
    return on_gpu.bitplane_conv(x, *packed, bias, m, outputs, convolution, activation)


def _vectorwise(
    x: Tensor, values: Tensor, inputs: Tensor, bias: Tensor | None, outputs: int, in_features: int, *sizes: Any
) -> Tensor:
    convolution, activation = _convolution(*sizes)
    shape = check_vectorwise_conv(x, values, inputs, bias, outputs, in_features, convolution, activation)
    if not x.numel():
        return _of_nothing(x, bias, shape, activation)
    within = inputs.contiguous().clamp(
        0, prod(convolution.kernel) * in_features - 1
    )  # whoever made them: nothing is read beyond x
    return on_gpu.vectorwise_conv(x, values.contiguous(), within, bias, outputs, convolution, activation)


def _convolution(
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: str = "none",
) -> tuple[Convolution, str]:
    return Convolution(tuple(kernel), tuple(stride), tuple(padding), tuple(dilation), groups), activation


def _of_nothing(x: Tensor, bias: Tensor | None, shape: tuple[int, ...], activation: str) -> Tensor:
    """Of no images, or of images without channels."""
    out = x.new_zeros(shape)
    if bias is not None:
        out = out + bias.to(x.dtype).view(-1, *(1,) * (len(shape) - 2))
    return activated(out, activation).contiguous(memory_format=memory_format(x))


def _fake_bitplane(x: Tensor, *given: Any) -> Tensor:
    packed, sizes = given[:6], given[6:]
    shape = check_bitplane_conv(x, *packed, *_convolution(*sizes))
    return x.new_empty(shape).contiguous(memory_format=memory_format(x))


def _fake_vectorwise(x: Tensor, *given: Any) -> Tensor:
    packed, sizes = given[:5], given[5:]
    shape = check_vectorwise_conv(x, *packed, *_convolution(*sizes))
    return x.new_empty(shape).contiguous(memory_format=memory_format(x))


_SIZES = "int[] kernel, int[] stride, int[] padding, int[] dilation, int groups, str activation='none'"

register(
    "bitplane_conv",
    f"Tensor x, Tensor values, Tensor planes, Tensor? bias, int m, int outputs, int in_features, {_SIZES}",
    _bitplane,
    _fake_bitplane,
)
register(
    "vectorwise_conv",
    f"Tensor x, Tensor values, Tensor inputs, Tensor? bias, int outputs, int in_features, {_SIZES}",
    _vectorwise,
    _fake_vectorwise,
)
