"""A tensor that modules hold as their weight, so that whatever multiplies by it is dispatched.

``F.linear``, ``F.conv1d/2d/3d``, attention and GPT-2's ``addmm`` reach it wherever they are called. To everything else
it is the dense weight itself: what is read, copied, saved or written through it is the very parameter that it stands
for.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.utils._pytree import tree_iter, tree_map_only

from lightning_nm.kernels.convolution import Convolution, memory_format
from lightning_nm.sparse import traced
from lightning_nm.sparse.dispatch import Dispatched


class HeldWeight(torch.Tensor):
    """Stands for a dense weight in a module.

    Products go through ``dispatched`` wherever no gradient is asked for; with gradients torch multiplies the weight.
    """

    weight: Tensor
    sums_over: int
    """Its reduction dimension."""
    dispatched: Dispatched | None
    """None while `torch.compile` traces, with another tensor in the weight's place."""

    @staticmethod
    def __new__(cls, weight: Tensor, dim: int, dispatched: Dispatched | None) -> HeldWeight:
        held = torch.Tensor._make_wrapper_subclass(
            cls, weight.shape, strides=weight.stride(), dtype=weight.dtype, device=weight.device
        )
        held.weight, held.sums_over, held.dispatched = weight, dim, dispatched
        held._is_param = True  # modules ask isinstance(_, nn.Parameter)
        return held

    @classmethod
    def of(cls, dispatched: Dispatched) -> HeldWeight:
        return cls(dispatched.weight, dispatched.dim, dispatched)

    def __tensor_flatten__(self) -> tuple[list[str], int]:
        return ["weight"], self.sums_over

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], dim: int, size: Any, stride: Any) -> HeldWeight:
        return HeldWeight(inner["weight"], dim, None)

    def __repr__(self) -> str:  # type: ignore[override]
        return repr(self.weight)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return copy.deepcopy(self.weight, memo)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None:
            raise RuntimeError("export and trace models with their own parameters: restore() the accelerated one first")
        if func is torch.Tensor.untyped_storage:  # torch.compile would take two tensors of one storage for views
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args)
        if (product := _PRODUCTS.get(func)) is not None and not _asks_gradients(args, kwargs):
            result = product(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return func(*_dense(args), **_dense(kwargs))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """What attention calls inside."""
        kwargs = kwargs or {}
        if (product := _INSIDE.get(func)) is not None:
            result = product(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return func(*_dense(args), **_dense(kwargs))


def _dense(arguments: Any) -> Any:
    return tree_map_only(HeldWeight, lambda held: held.weight, arguments)


def _asks_gradients(args: Any, kwargs: Any) -> bool:
    """Of the products' operators, which have none, forward ones and those of vmap's kind neither."""
    if forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    if not torch.is_grad_enabled():
        return False
    tensors = [each for each in tree_iter((args, kwargs)) if isinstance(each, Tensor)]
    held = [each for each in tensors if isinstance(each, HeldWeight)]
    asks = any(tensor.requires_grad for tensor in [*tensors, *(each.weight for each in held)])
    for each in held:
        if asks and each.dispatched is not None:
            each.dispatched.met_gradients = True
        elif asks and each.weight.requires_grad:
            raise RuntimeError(  # what is compiled would lose it, and say nothing
                "torch.compile cannot give an accelerated weight its gradient: use torch.no_grad(), or restore() the "
                "model first"
            )
    return asks


def _product(x: Tensor, held: Any, bias: Tensor | None, convolution: Convolution | None, dim: int = 1) -> Any:
    """What `Dispatched.product` gives, or NotImplemented: torch then multiplies, or says what is wrong."""
    if not isinstance(held, HeldWeight) or held.sums_over != dim:
        return NotImplemented
    weight, dispatched, dtype, device = held.weight, held.dispatched, held.weight.dtype, x.device.type
    if dispatched is not None and type(x) not in (Tensor, nn.Parameter):
        return NotImplemented
    if x.layout != torch.strided or x.is_nested or x.is_neg() or x.dim() == 0 or x.device != weight.device:
        return NotImplemented
    if torch.is_autocast_enabled(device) and torch.float64 not in (x.dtype, dtype) and x.is_floating_point():
        dtype = torch.get_autocast_dtype(device)
        x, bias = x.to(dtype), bias if bias is None else bias.to(dtype)
    fits = bias is None or (bias.dtype == dtype and bias.shape == weight.shape[1 - dim : 2 - dim])
    inputs = weight.shape[dim] if convolution is None else weight.shape[1] * convolution.groups
    if not fits or x.dtype != dtype or x.shape[-1 if convolution is None else 1] != inputs:
        return NotImplemented
    if convolution is not None and not convolution.fits(x.shape, weight.shape[0]):
        return NotImplemented
    if dispatched is None:
        return traced.product(x, weight, bias, dim, convolution)
    dispatched = dispatched.current()
    return (dispatched if dtype == weight.dtype else dispatched.cast(dtype)).product(x, bias, convolution)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    return _product(input, weight, bias, None)


def _addmm(input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
    """GPT-2's Conv1D: its weight is ``[in, out]``."""
    if beta != 1 or alpha != 1 or not isinstance(mat2, HeldWeight) or input.shape != mat2.weight.shape[1:]:
        return NotImplemented
    return _product(mat1, mat2, input, None, dim=0)


def _convolution(dims: int) -> Callable[..., Any]:
    def each(size: int | Sequence[int]) -> tuple[int, ...]:
        sizes = (size,) if isinstance(size, int) else tuple(size)
        return sizes * dims if len(sizes) == 1 else sizes

    def convolve(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> Any:
        if not isinstance(weight, HeldWeight) or input.dim() not in (dims + 1, dims + 2):
            return NotImplemented
        kernel = tuple(weight.weight.shape[2:])
        if padding == "same":
            around = [d * (k - 1) for d, k in zip(each(dilation), kernel)]
            if any(size % 2 for size in around) or set(each(stride)) != {1}:
                return NotImplemented
            padding = [size // 2 for size in around]
        elif isinstance(padding, str):
            if padding != "valid":
                return NotImplemented
            padding = 0
        convolution = Convolution(kernel, each(stride), each(padding), each(dilation), groups)
        if not _possible(convolution, input.shape[-dims:], weight.shape[0]):
            return NotImplemented
        if input.dim() == dims + 1:
            result = _product(input[None], weight, bias, convolution)
            return result if result is NotImplemented else result[0]
        layout = memory_format(weight.weight)
        if layout != torch.contiguous_format:
            input = input.contiguous(memory_format=layout)  # as torch does for such weights
        return _product(input, weight, bias, convolution)

    return convolve


def _possible(convolution: Convolution, sizes: Sequence[int], outputs: int) -> bool:
    """Whether there is a result: kernels do not ask."""
    kernel, stride, padding, dilation, groups = convolution
    return (
        len(kernel) == len(stride) == len(padding) == len(dilation)
        and min(*stride, *dilation, groups) > 0
        and min(padding) >= 0
        and outputs % groups == 0
        and min(convolution.spatial(sizes)) > 0
    )


def _attention(*args: Any, **kwargs: Any) -> Any:
    """Torch's own, which then meets `HeldWeight.__torch_dispatch__` inside."""
    if any(isinstance(each, HeldWeight) and each.dispatched is None for each in (*args, *kwargs.values())):
        return NotImplemented
    # torch need not know which pieces are views: in inference mode it could not even note it
    views = torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.ADInplaceOrView))
    with torch._C.DisableTorchFunctionSubclass(), torch._C._AutoDispatchBelowAutograd(), views:
        return F.multi_head_attention_forward(*args, **kwargs)


def _pieces(operator: Any) -> Callable[..., Any]:
    def cut(held: HeldWeight, *sizes: Any) -> Any:
        """Rows of the stacked projections of query, key and value."""
        assert held.dispatched is not None
        dispatched, pieces, first = held.dispatched.current(), [], 0
        for piece in operator(held.weight, *sizes):
            whole = piece.shape[1:] == held.weight.shape[1:]
            pieces.append(HeldWeight.of(dispatched.rows(first, first + len(piece))) if whole else piece)
            first += len(piece)
        return pieces

    return cut


def _cast(held: HeldWeight, dtype: torch.dtype, *args: Any, **kwargs: Any) -> Any:
    assert held.dispatched is not None
    return HeldWeight.of(held.dispatched.current().cast(dtype))


_PRODUCTS: dict[Any, Callable[..., Any]] = {
    F.linear: _linear,
    torch.addmm: _addmm,
    F.conv1d: _convolution(1),
    F.conv2d: _convolution(2),
    F.conv3d: _convolution(3),
    F.multi_head_attention_forward: _attention,
}
_INSIDE: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.linear.default: _linear,
    torch.ops.aten.to.dtype: _cast,
    torch.ops.aten.chunk.default: _pieces(torch.ops.aten.chunk.default),
    torch.ops.aten.split_with_sizes.default: _pieces(torch.ops.aten.split_with_sizes.default),
}
