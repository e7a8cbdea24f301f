"""Activation checkpoints in sparse training."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from lightning_nm.sparse import SparseTraining
from lightning_nm.training import select
from tests.sparse.models import assert_near, sparse
from tests.sparse.test_sparse_training import backends, data, mlp


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpoints(reentrant: bool, within: bool) -> None:
    """Layers that run again in the backward pass do so as in the forward one; the old way, they run dense then."""
    model, twin = (sparse(mlp(), "2:4T").train() for _ in range(2))
    x, training = data().requires_grad_(), SparseTraining(select(model, "2:4T"), backend="cpu")
    again = {} if reentrant else {"context_fn": training.context_fn}
    with training:
        loss = checkpoint(model, x, use_reentrant=reentrant, **again).sum()
        if within:
            loss.backward()
    if not within:
        loss.backward()
    twin(data()).sum().backward()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert_near(one.grad, other.grad)


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("told", [False, True])
def test_both_runs_are_alike(told: bool, autocast: bool, within: bool) -> None:
    """Both times packed if they are told to; dense if not, which the report says: torch compares what is saved."""
    model, twin = (sparse(mlp(), "2:4T").train() for _ in range(2))
    training = SparseTraining(select(model, "2:4T"), backend="cpu")
    again = {"context_fn": training.context_fn} if told else {}
    runs: list[str] = []
    model[0].register_forward_hook(lambda module, args, out: runs.append(type(out.grad_fn).__name__))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        twin(data()).float().sum().backward()
        with training:
            loss = checkpoint(model, data().requires_grad_(), use_reentrant=False, **again).float().sum()
            if within:
                loss.backward()
    if not within:
        loss.backward()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, **({"atol": 0.1, "rtol": 0.1} if autocast else {}))
    assert ["StraightThrough" in run for run in runs] == [told, told]
    assert set().union(*backends(training).values()) == {"cpu" if told else "dense"}
    assert all("SparseTraining's context_fn" in row.reason for row in training.rows()) != told


def test_a_checkpoint_outside_runs_again_outside() -> None:
    """A layer that is given ``context_fn`` for good is dense twice where this is not active."""
    model = sparse(mlp(), "2:4T").train()
    training = SparseTraining(select(model, "2:4T"), backend="cpu")
    loss = checkpoint(model, data().requires_grad_(), use_reentrant=False, context_fn=training.context_fn).sum()
    with training:
        loss.backward()
    assert set().union(*backends(training).values()) == {"dense"}


def test_a_torch_that_tells_nothing_of_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its private function is gone: all else goes on."""
    monkeypatch.delattr(torch._C._autograd, "_top_saved_tensors_default_hooks")
    model = sparse(mlp(), "2:4T").train()
    training = SparseTraining(select(model, "2:4T"), backend="cpu")
    with training:
        checkpoint(model, data().requires_grad_(), use_reentrant=False, context_fn=training.context_fn).sum().backward()
    assert set().union(*backends(training).values()) == {"cpu"}
