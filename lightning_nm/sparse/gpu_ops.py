"""Products of packed weights on a GPU as operators of torch: see `lightning_nm.sparse.ops`, whose rules they keep.

    torch.ops.lightning_nm.gathered_linear(x, positions, values, bias, n, m, in_features, activation)
    torch.ops.lightning_nm.bitplane_linear(x, values, planes, bias, m, outputs, in_features, activation)
    torch.ops.lightning_nm.vectorwise_linear(x, values, inputs, bias, outputs, in_features, activation)
    torch.ops.lightning_nm.sparse_mma_linear(x, values, positions, bias, outputs, in_features, activation)
    torch.ops.lightning_nm.cusparselt_linear(
        x, compressed, bias, outputs, in_features, alg_id, split_k, split_k_mode, activation)

x is ``[..., I]``, of the packed values' dtype, bfloat16 or float16; under autocast that is the dtype it is cast to.
``activation`` ends the product: "relu", "gelu" (by the error function), "gelu_tanh", "silu" or, as by default, "none".
Triton's kernels apply it to the float32 sums, before the one rounding; plain torch and cuSPARSELt to the product.
`lightning_nm.kernels.on_gpu` packs and describes the tensors. On other devices than CUDA's plain torch multiplies;
cuSPARSELt (`lightning_nm.kernels.cusparselt`) is on these alone.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_nm.kernels import cusparselt, on_gpu
from lightning_nm.kernels.activation import activated
from lightning_nm.kernels.gathered_nm import Layout
from lightning_nm.sparse.gpu_operands import (
    check_bitplane,
    check_cusparselt,
    check_gathered,
    check_sparse_mma,
    check_vectorwise,
)
from lightning_nm.sparse.ops import register


def _gathered(
    x: Tensor,
    positions: Tensor,
    values: Tensor,
    bias: Tensor | None,
    n: int,
    m: int,
    in_features: int,
    activation: str = "none",
) -> Tensor:
    shape = check_gathered(x, positions, values, bias, n, m, in_features, activation)
    if not x.numel():
        return _of_nothing(x, bias, shape, activation)
    layout = Layout.of(n, m, in_features)
    assert layout is not None
    packed = positions.contiguous(), values.contiguous()
    return on_gpu.gathered(_rows(x), *packed, bias, layout, activation).view(shape)


def _bitplane(
    x: Tensor,
    values: Tensor,
    planes: Tensor,
    bias: Tensor | None,
    m: int,
    outputs: int,
    in_features: int,
    activation: str = "none",
) -> Tensor:
    shape = check_bitplane(x, values, planes, bias, m, outputs, in_features, activation)
    if not x.numel():
        return _of_nothing(x, bias, shape, activation)
    packed = values.contiguous(), planes.contiguous()
    return on_gpu.bitplane(_rows(x), *packed, bias, m, outputs, activation).view(shape)


def _vectorwise(
    x: Tensor,
    values: Tensor,
    inputs: Tensor,
    bias: Tensor | None,
    outputs: int,
    in_features: int,
    activation: str = "none",
) -> Tensor:
    shape = check_vectorwise(x, values, inputs, bias, outputs, in_features, activation)
    if not x.numel():
        return _of_nothing(x, bias, shape, activation)
    within = inputs.contiguous().clamp(0, in_features - 1)  # whoever made them: nothing is read beyond x
    return on_gpu.vectorwise(_rows(x), values.contiguous(), within, bias, outputs, activation).view(shape)


def _sparse_mma(
    x: Tensor,
    values: Tensor,
    positions: Tensor,
    bias: Tensor | None,
    outputs: int,
    in_features: int,
    activation: str = "none",
) -> Tensor:
    shape = check_sparse_mma(x, values, positions, bias, outputs, in_features, activation)
    if not x.numel():
        return _of_nothing(x, bias, shape, activation)
    packed = values.contiguous(), positions.contiguous()
    return on_gpu.sparse_tensor_cores(_rows(x), *packed, bias, outputs, activation).view(shape)


def _cusparselt(
    x: Tensor,
    compressed: Tensor,
    bias: Tensor | None,
    outputs: int,
    in_features: int,
    alg_id: int,
    split_k: int,
    split_k_mode: int,
    activation: str = "none",
) -> Tensor:
    shape = check_cusparselt(x, compressed, bias, outputs, in_features, activation)
    if not x.numel():
        return _of_nothing(x, bias, shape, activation)
    algorithm = cusparselt.Algorithm(alg_id, split_k, split_k_mode)
    return activated(cusparselt.matmul(_rows(x), compressed, bias, algorithm), activation).view(shape)


def _rows(x: Tensor) -> Tensor:
    """[B, I]"""
    return x.reshape(-1, x.shape[-1])


def _of_nothing(x: Tensor, bias: Tensor | None, shape: tuple[int, ...], activation: str) -> Tensor:
    """The product of no rows, or of no inputs."""
    out = x.new_zeros(shape)
    return activated(out if bias is None else out + bias.to(x.dtype), activation)


def _fake_gathered(x: Tensor, *packed: Any) -> Tensor:
    return x.new_empty(check_gathered(x, *packed))


def _fake_bitplane(x: Tensor, *packed: Any) -> Tensor:
    return x.new_empty(check_bitplane(x, *packed))


def _fake_vectorwise(x: Tensor, *packed: Any) -> Tensor:
    return x.new_empty(check_vectorwise(x, *packed))


def _fake_sparse_mma(x: Tensor, *packed: Any) -> Tensor:
    return x.new_empty(check_sparse_mma(x, *packed))


def _fake_cusparselt(x: Tensor, *packed: Any) -> Tensor:
    return x.new_empty(check_cusparselt(x, *packed[:4], *packed[7:]))


register(
    "gathered_linear",
    "Tensor x, Tensor positions, Tensor values, Tensor? bias, int n, int m, int in_features, str activation='none'",
    _gathered,
    _fake_gathered,
)
register(
    "bitplane_linear",
    "Tensor x, Tensor values, Tensor planes, Tensor? bias, int m, int outputs, int in_features, str activation='none'",
    _bitplane,
    _fake_bitplane,
)
register(
    "vectorwise_linear",
    "Tensor x, Tensor values, Tensor inputs, Tensor? bias, int outputs, int in_features, str activation='none'",
    _vectorwise,
    _fake_vectorwise,
)
register(
    "sparse_mma_linear",
    "Tensor x, Tensor values, Tensor positions, Tensor? bias, int outputs, int in_features, str activation='none'",
    _sparse_mma,
    _fake_sparse_mma,
)
register(
    "cusparselt_linear",
    "Tensor x, Tensor compressed, Tensor? bias, int outputs, int in_features, "
    "int alg_id, int split_k, int split_k_mode, str activation='none'",
    _cusparselt,
    _fake_cusparselt,
)
