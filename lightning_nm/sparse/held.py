"""A tensor that modules hold as their weight, so that whatever multiplies by it is dispatched.

``F.linear``, ``F.conv1d/2d/3d``, attention and GPT-2's ``addmm`` reach it wherever they are called. To everything else
it is the dense weight itself: what is read, copied, saved or written through it is the very parameter that it stands
for.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._prims_common import suggest_memory_format
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.utils._pytree import tree_iter, tree_map_only

from lightning_nm.kernels.convolution import Convolution
from lightning_nm.sparse import traced
from lightning_nm.sparse.dispatch import Dispatched, Multiply
from lightning_nm.sparse.recall import recall, remember


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

    def _stable_hash_for_caching(self) -> str:
        """What compiled graphs depend on, beside sizes."""
        return f"HeldWeight over {self.sums_over}"

    def __repr__(self) -> str:  # type: ignore[override]
        return repr(self.weight)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return copy.deepcopy(self.weight, memo)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        held = args[1] if len(args) > 1 and not kwargs else None
        dispatched = held.dispatched if isinstance(held, HeldWeight) else None
        if dispatched is not None and (multiply := recall(dispatched, func, args)) is not None:
            return multiply(args[0], args[2] if len(args) > 2 else None)
        kwargs = kwargs or {}
        if torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None:
            raise RuntimeError("export and trace models with their own parameters: restore() the accelerated one first")
        if func is torch.Tensor.untyped_storage:  # torch.compile would take two tensors of one storage for views
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args)
        if func in _PRODUCTS and not _asks_gradients(args, kwargs):
            product = _PRODUCTS[func](*args, **kwargs)
            if isinstance(product, _Product):
                if dispatched is not None and product.x is args[0]:
                    remember(dispatched, func, args, product.multiply)
                return product.multiply(product.x, product.bias)
            if func is F.multi_head_attention_forward and product is not NotImplemented:
                return product
        return func(*_dense(args), **_dense(kwargs))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """What attention calls inside."""
        kwargs = kwargs or {}
        if func is torch.ops.aten.linear.default:
            product = _linear(*args, **kwargs)
            if isinstance(product, _Product):
                return product.multiply(product.x, product.bias)
        elif func in _INSIDE:
            return _INSIDE[func](*args, **kwargs)
        return func(*_dense(args), **_dense(kwargs))


class _Product(NamedTuple):
    """How to multiply, and what."""

    multiply: Multiply
    x: Tensor
    bias: Tensor | None


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
    """A `_Product`, or NotImplemented: torch then multiplies, or says what is wrong."""
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
        return _Product(lambda x, bias: traced.product(x, weight, bias, dim, convolution), x, bias)
    dispatched = dispatched.current()
    if dtype != weight.dtype:
        dispatched = dispatched.cast(dtype)
    return _Product(dispatched.multiplier(x, bias, convolution), x, bias)


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
        layout = suggest_memory_format(weight.weight)  # a 1x1 kernel's, too

        def image(x: Tensor) -> Tensor:
            x = x if x.dim() == dims + 2 else x[None]
            # as torch does for such weights
            return x if layout == torch.contiguous_format else x.contiguous(memory_format=layout)

        product = _product(seen := image(input), weight, bias, convolution)
        if product is NotImplemented or seen is input:
            return product
        multiply, unbatched = product.multiply, input.dim() == dims + 1

        def of_image(x: Tensor, bias: Tensor | None) -> Tensor:
            out: Tensor = multiply(x if x is product.x else image(x), bias)
            return out[0] if unbatched else out

        # where autocast has cast it, x is not what was given
        return product._replace(multiply=of_image, x=input if product.x is seen else product.x)

    return convolve


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
    torch.ops.aten.to.dtype: _cast,
    torch.ops.aten.chunk.default: _pieces(torch.ops.aten.chunk.default),
    torch.ops.aten.split_with_sizes.default: _pieces(torch.ops.aten.split_with_sizes.default),
}
