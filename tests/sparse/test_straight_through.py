"""Gradients of packed products are those of the dense ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from lightning_nm.patterns import parse
from lightning_nm.sparse.straight_through import Packed, product
from tests.sparse.models import assert_near, sparse_weight
from tests.sparse.test_held import STRIDES

BY = [("cpu", "cpu"), ("cpu", "dense"), ("dense", "cpu")]


def in_double(x: Tensor, weight: Tensor, bias: Tensor | None, dim: int, grad: Tensor) -> list[Tensor]:
    """(y, dx, dW, db) by autograd."""
    wide = [tensor.detach().double().requires_grad_() for tensor in (x, weight, *([] if bias is None else [bias]))]
    out = F.linear(wide[0], wide[1] if dim == 1 else wide[1].T, *wide[2:])
    return [out.detach(), *torch.autograd.grad(out, wide, grad.double())]


@settings(deadline=None, max_examples=12)
@given(st.data())
def test_any_layer(data: st.DataObject) -> None:
    """Any size, batch, strides, dtype and layout of the weight: what float64 gives, to the dtype's precision."""
    pattern, dim = data.draw(st.sampled_from(["2:4T", "2:4T,at_most", "1:4T"])), data.draw(st.integers(0, 1))
    inputs, outputs = (data.draw(st.sampled_from([16, 24])) for _ in range(2))  # each size compiles a kernel
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    weight = sparse_weight((outputs, inputs) if dim == 1 else (inputs, outputs), pattern, dim=dim).to(dtype)
    shape = data.draw(st.sampled_from([(), (5,), (2, 1, 5)]))
    x = data.draw(st.sampled_from(STRIDES))(torch.randn(*shape, inputs)).to(dtype)
    bias = torch.randn(outputs).to(dtype) if data.draw(st.booleans()) else None
    grad = data.draw(st.sampled_from(STRIDES))(torch.randn(*shape, outputs)).to(dtype)
    given_ = [x, weight, *([] if bias is None else [bias])]
    for each in given_:
        each.requires_grad_()
    out = product(x, weight, bias, Packed(weight.detach(), parse(pattern)), dim, data.draw(st.sampled_from(BY)))
    assert out.dtype == dtype
    mine = [out.detach(), *torch.autograd.grad(out, given_, grad)]
    for one, exact in zip(mine, in_double(x, weight, bias, dim, grad), strict=True):
        assert_near(one, exact)


def operands(pattern: str = "2:4T") -> tuple[Tensor, Tensor, Packed]:
    weight = sparse_weight((16, 24), pattern)
    return torch.randn(5, 24), weight.requires_grad_(), Packed(weight.detach(), parse(pattern))


def test_every_entry_of_the_weight_has_its_gradient() -> None:
    """Straight-through: those that the mask removed, too."""
    x, weight, packed = operands()
    product(x, weight, None, packed, 1, BY[0]).sum().backward()
    assert weight.grad is not None
    assert_near(weight.grad, x.double().sum(0).expand(16, 24))


@pytest.mark.parametrize("asks", [(True, False), (False, True), (False, False)])
def test_only_what_is_asked_for(asks: tuple[bool, bool]) -> None:
    """A frozen weight, or an input without a gradient: nothing is saved or packed for those."""
    x, weight, packed = operands()
    x.requires_grad_(asks[0])
    weight.requires_grad_(asks[1])
    out = product(x, weight, None, packed, 1, BY[0])
    assert out.requires_grad == any(asks)
    if any(asks):
        out.sum().backward()
    assert [x.grad is not None, weight.grad is not None] == list(asks)
    assert sorted(along for _, along in packed._operands) == ([0, 1] if asks[0] else [1])


def test_a_gradient_that_is_differentiated_again() -> None:
    """Is the dense product's, which has derivatives of any order."""
    x, weight, packed = operands()
    x.requires_grad_()

    def penalty(y: Tensor) -> list[Tensor]:
        [slope] = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return list(torch.autograd.grad(slope.square().sum(), [x, weight]))

    mine, dense = penalty(product(x, weight, None, packed, 1, BY[0])), penalty(F.linear(x, weight))
    for one, other in zip(mine, dense, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-4)


def add_(y: Tensor) -> Tensor:
    y += 1
    return y


@pytest.mark.parametrize("shape", [(5, 24), (2, 5, 24)])
@pytest.mark.parametrize("write", [F.relu_, add_, lambda y: y.masked_fill_(y < 0, 0.5)])
def test_what_comes_next_may_write_to_the_product(write: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
    """``nn.ReLU(inplace=True)``, ``y += x``, ``masked_fill_``: as on torch's own products, and with their gradients."""
    _, weight, packed = operands()
    x = torch.randn(shape, requires_grad=True)
    mine, dense = product(x, weight, None, packed, 1, BY[0]), F.linear(x, weight)
    for one, other in zip(
        torch.autograd.grad(write(mine).square().sum(), [x, weight]),
        torch.autograd.grad(write(dense).square().sum(), [x, weight]),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-4)


def one_vmap(y: Tensor, asked: list[Tensor], grads: Tensor) -> tuple[Tensor, ...]:
    return torch.vmap(lambda grad: torch.autograd.grad(y, asked, grad, retain_graph=True))(grads)


def another_vmap(y: Tensor, asked: list[Tensor], grads: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(y, asked, grads, is_grads_batched=True)


@pytest.mark.parametrize("gradients", [one_vmap, another_vmap])
def test_many_gradients_at_once(gradients: Callable[..., tuple[Tensor, ...]]) -> None:
    """As of vectorized Jacobians: those of the dense product."""
    x, weight, packed = operands()
    x.requires_grad_()
    mine, dense = product(x, weight, None, packed, 1, BY[0]), F.linear(x, weight)
    grads = torch.randn(3, 5, 16)
    for one, other in zip(gradients(mine, [x, weight], grads), gradients(dense, [x, weight], grads), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_a_weight_written_to_before_the_backward_pass() -> None:
    """Is an error, as with torch's own products: never the gradient by another weight."""
    x, weight, packed = operands()
    out = product(x.requires_grad_(), weight, None, packed, 1, BY[0])
    with torch.no_grad():
        weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_packed_again_for_the_gradient() -> None:
    """Where nobody has kept what the product was made of."""
    x, weight, packed = operands()
    out = product(x.requires_grad_(), weight, None, packed, 1, BY[0])
    del packed
    out.sum().backward()
    assert_near(x.grad, weight.detach().double().sum(0).expand(5, 24))


def test_a_gradient_has_the_parameters_dtype() -> None:
    """A float32 weight that is multiplied in bfloat16, as under autocast."""
    x, weight, _ = operands()
    packed = Packed(weight.detach().bfloat16(), parse("2:4T"))
    out = product(x.bfloat16().requires_grad_(), weight, None, packed, 1, BY[0])
    out.sum().backward()
    assert (out.dtype, weight.grad.dtype) == (torch.bfloat16, torch.float32)  # type: ignore[union-attr]
