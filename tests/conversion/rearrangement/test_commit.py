"""Writing moves: what cannot be written is refused by name, and what fails is undone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_nm.conversion.rearrangement.commit import check_writable, commit
from lightning_nm.conversion.rearrangement.spaces import Moves, Site, Space

ORDER = torch.tensor([2, 0, 1])


def moves(*names: str) -> Moves:
    """The first dimension of size 3 of each."""
    sites = tuple(Site(name, 0, torch.arange(3)[:, None], 3, 1) for name in names)
    return Moves([(Space(sites, 3), ORDER)])


def test_tensors_and_gradients_move() -> None:
    """In place; gradients that autograd expanded or shares are permuted all the same."""
    shared = torch.tensor([4.0, 5.0, 6.0])
    a, b, c = (torch.arange(3.0).requires_grad_() for _ in range(3))
    a.grad, b.grad, c.grad = shared, shared, torch.ones(1).expand(3)
    commit({"a": a, "b": b, "c": c}, moves("a", "b", "c"))
    for tensor in (a, b, c):
        assert torch.equal(tensor, torch.arange(3.0)[ORDER])
    assert [tensor.grad.tolist() for tensor in (a, b, c)] == [[6.0, 4.0, 5.0], [6.0, 4.0, 5.0], [1.0, 1.0, 1.0]]


def test_what_fails_is_undone() -> None:
    """If the second cannot be written, the first is as it was, with its very gradient."""
    a = torch.arange(3.0).requires_grad_()
    grad = a.grad = torch.arange(3.0)
    with torch.inference_mode():
        b = torch.arange(3.0)
    with pytest.raises(RuntimeError, match="inference"):
        commit({"a": a, "b": b}, moves("a", "b"))
    assert torch.equal(a, torch.arange(3.0))
    assert a.grad is grad
    assert torch.equal(grad, torch.arange(3.0))


def _views() -> tuple[Tensor, Tensor]:
    whole = torch.randn(5)
    return whole[:3], whole[2:]


REFUSED = {
    "at an offset": (_views(), "a and b share memory"),
    "a row of it": ((a := torch.randn(3, 4), a[1]), "a and b share memory"),
    "expanded": ((torch.ones(1).expand(3), torch.ones(3)), "a is an expanded tensor"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    """By both names."""
    (a, b), message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        check_writable({"a": a, "b": b}, moves("a"))


def test_inference_tensors_are_refused() -> None:
    with torch.inference_mode():
        a = torch.ones(3)
    with pytest.raises(ValueError, match="a was made in inference mode"):
        check_writable({"a": a}, moves("a"))


def test_parts_of_one_storage_that_do_not_overlap() -> None:
    """As in a flat buffer of all parameters; empty ones take no room. What does not move may share."""
    whole = torch.randn(6)
    tensors = {"a": whole[:3], "b": whole[3:], "c": whole[:0], "d": torch.randn(3)}
    check_writable(tensors, moves("a", "b"))
    check_writable({**tensors, "e": whole[2:4]}, moves("d"))
