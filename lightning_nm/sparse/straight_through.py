"""A layer's three products in a training step, of which packed weights do two.

    y  = x W^T      sums over the inputs, along which the mask is N:M
    dx = dy W       sums over the outputs, along which a transposable mask is N:M too
    dW = dy^T x     dense: straight-through, every entry is asked for, those that the mask removed too (SR-STE)

With the first two s times as fast the step is 3 / (2 / s + 1) times as fast (Hubara et al., arXiv 2102.08124, sec. 3).
"""

from __future__ import annotations

from typing import Any, cast
from weakref import ref

import torch
from torch import Tensor

from lightning_nm.patterns import Pattern
from lightning_nm.sparse.backends import BACKENDS, DenseOperand, Operand


class Packed:
    """A sparse weight as it is at one moment, in each form in which it is multiplied once that has been asked for.

    Args:
        weight: ``[O, I]``, or ``[I, O]``, of the dtype of what it multiplies.
        pattern: which it is known to obey, along the dimensions that are asked for.
    """

    def __init__(self, weight: Tensor, pattern: Pattern) -> None:
        self.weight, self.pattern = weight, pattern
        self._operands: dict[tuple[str, int], Operand] = {}

    def operand(self, backend: str, along: int) -> Operand:
        """In a backend's form, to be summed over dimension ``along``."""
        if (backend, along) not in self._operands:
            # patterns that no backend packs are dense's
            self._operands[backend, along] = BACKENDS[backend].hold_known(self.weight, cast(Any, self.pattern), along)
        return self._operands[backend, along]


def product(x: Tensor, weight: Tensor, bias: Tensor | None, packed: Packed, dim: int, by: tuple[str, str]) -> Tensor:
    """``x @ W^T + bias`` with gradients to all three, those of the weight dense.

    Args:
        x: ``[..., I]``, of the dtype of ``packed``.
        weight: the parameter, ``[O, I]`` or ``[I, O]``, of any dtype, which its gradient has.
        bias: ``[O]``, of x's dtype.
        packed: the weight's values.
        dim: of the weight, which sums over it: 1, or 0 for ``[I, O]``.
        by: backends of the product, and of x's gradient.
    """
    out: Tensor = _StraightThrough.apply(x, weight, bias, packed, dim, by)  # type: ignore[no-untyped-call]
    return out


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, packed: Packed, dim: int, by: tuple[str, str]
    ) -> Tensor:
        asks_x, asks_weight = ctx.needs_input_grad[:2]
        ctx.dim, ctx.by, ctx.dtype = dim, by[1], weight.dtype
        # weakly: whoever keeps a loss keeps its graph, and would keep the packed weights of every step
        ctx.packed, ctx.pattern = ref(packed) if asks_x else None, packed.pattern
        # as torch's own: what is written to before the backward pass is an error then
        ctx.save_for_backward(x if asks_weight else None, weight if asks_x else None)
        out = packed.operand(by[0], dim).linear(x, bias)
        # operands give views, which autograd lets nobody write to: the same memory, not as a view
        return cast(Tensor, torch.ops.aten._unsafe_view(out, out.shape))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        asks_x, asks_weight, asks_bias = ctx.needs_input_grad[:3]
        dx = dweight = dbias = None
        if asks_x:
            along = 1 - ctx.dim
            operand: Operand
            if torch.is_grad_enabled() or _is_batched(grad):
                # whoever differentiates the gradient again, or asks for many at once, gets a product that can be
                operand = DenseOperand(weight.to(grad.dtype), along)
            else:
                # autograd has just seen that nobody has written to the weight
                packed = ctx.packed() or Packed(weight.detach().to(grad.dtype), ctx.pattern)
                operand = packed.operand(ctx.by, along)
            dx = operand.linear(grad, None)
        if asks_weight:
            inputs, outputs = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
            dweight = (outputs.T @ inputs if ctx.dim == 1 else inputs.T @ outputs).to(ctx.dtype)
        if asks_bias:
            dbias = grad.reshape(-1, grad.shape[-1]).sum(0)
        return dx, dweight, dbias, None, None, None


def _is_batched(grad: Tensor) -> bool:
    """By `torch.vmap`, or by the older one that ``is_grads_batched`` takes."""
    functorch = torch._C._functorch
    return functorch.is_batchedtensor(grad) or functorch.is_legacy_batchedtensor(grad)
