"""Gradients accumulated over k batches: one step, one decay, one move of the masks."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback
from torch import Tensor
from torch.utils.data import DataLoader

from tests.helpers import trainer
from tests.regimes.matrix import supported
from tests.regimes.watch import (
    BATCHES,
    LAMBDA,
    QuietNet,
    assert_lambda,
    data,
    dense_weights,
    sparsity,
    watched,
    weight_of,
)

ACCUMULATION = "`accumulate_grad_batches`"
MANUAL = "accumulation by hand"

# 6 batches to an epoch: for k = 4 two are left over, which make a step of their own
every_k = pytest.mark.parametrize(("k", "steps"), [(1, 6), (2, 3), (4, 2)])


class ByHand(QuietNet):
    """Manual optimization that steps after every ``k`` batches."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.k = k

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        optimizer = self.optimizers()
        self.manual_backward(super().training_step(batch, batch_idx) / self.k)
        if (batch_idx + 1) % self.k == 0 or batch_idx + 1 == BATCHES:
            optimizer.step()
            optimizer.zero_grad()


def accumulating(folder: Any, by: str, k: int, *others: L.Callback) -> tuple[QuietNet, Any, L.Trainer]:
    """A model, the callback and the Trainer that accumulates, by flag or by hand, for two epochs."""
    callback = sparsity(decay=LAMBDA)
    if by == "hand":
        return ByHand(k), callback, trainer(folder, callback, *others)
    return QuietNet(), callback, trainer(folder, callback, *others, accumulate_grad_batches=k)


@supported("Optimization", ACCUMULATION, MANUAL)
@pytest.mark.parametrize("by", ["flag", "hand"])
@every_k
def test_lambda_is_felt_once_per_step(tmp_path, by, k, steps):
    """However many batches make a step, hidden weights decay by lr * lambda in it."""
    model, callback, run = accumulating(tmp_path, by, k)
    start = dense_weights(model)
    with watched() as seen:
        run.fit(model, data())
    assert seen.steps == 2 * steps
    assert_lambda(callback, start, seen.steps)


@supported("Optimization", ACCUMULATION, MANUAL)
@pytest.mark.parametrize("by", ["flag", "hand"])
@every_k
def test_masks_move_with_the_optimizer_only(tmp_path, by, k, steps):
    """Weights and masks stay where they are from one optimizer step to the next, batch after batch."""
    seen: list[tuple[bool, bool]] = []

    def look(run: L.Trainer, model: QuietNet, *_: Any) -> None:
        now = [weight_of(callback).mask.unpack(), model.layer.weight.detach().clone()]
        if before:
            seen.append((not torch.equal(now[0], before[0]), not torch.equal(now[1], before[1])))
        before[:] = now

    before: list[Tensor] = []
    watch = LambdaCallback(on_train_batch_start=look, on_train_batch_end=look)
    model, callback, run = accumulating(tmp_path, by, k, watch)
    run.fit(model, data())
    during = seen[::2]  # a batch's end against its start; the others are the next one's start
    stepped = [(batch + 1) % k == 0 or batch + 1 == BATCHES for batch in range(BATCHES)] * 2
    assert [weights for _, weights in during] == stepped
    assert all(step for (masks, _), step in zip(during, stepped, strict=True) if masks)
    assert sum(masks for masks, _ in during) > 1
    assert not any(masks or weights for masks, weights in seen[1::2])


@supported("Optimization", ACCUMULATION)
@pytest.mark.parametrize("k", [2, 3])
def test_accumulated_batches_are_one_large_batch(tmp_path, k):
    """K batches, or one batch of all their samples: the same masks and the same weights."""
    samples = data().dataset
    trained = []
    for size, accumulated in ((2, k), (2 * k, 1)):
        model, callback = QuietNet(), sparsity(decay=LAMBDA)
        run = trainer(tmp_path, callback, accumulate_grad_batches=accumulated, precision="64-true")
        run.fit(model, DataLoader(samples, size))
        trained.append(weight_of(callback))
    one, other = trained
    assert torch.equal(one.mask.bits, other.mask.bits)
    torch.testing.assert_close(one.param, other.param)
    torch.testing.assert_close(one.hidden, other.hidden)
