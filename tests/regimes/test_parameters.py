"""Parameters in unusual places: shared, reused, frozen, thawed, added later."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers import same_bits, trainer
from tests.regimes.matrix import supported
from tests.regimes.watch import (
    BATCHES,
    LAMBDA,
    LR,
    Quiet,
    QuietNet,
    assert_exactly_2_4,
    assert_lambda,
    data,
    dense_weights,
    sparsity,
    watched,
    weight_of,
)


class Reused(QuietNet):
    """One layer, five times in each forward."""

    def forward(self, x: Tensor) -> Tensor:
        return sum(self.layer(x * i) for i in range(1, 6)) / 15


class Tied(QuietNet):
    """Two layers that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.other = Quiet()
        self.other.weight = self.layer.weight

    def forward(self, x: Tensor) -> Tensor:
        return (self.layer(x) + self.other(x)) / 2


class InTwoOptimizers(QuietNet):
    """Each of two optimizers steps the layer once per batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        return [super(InTwoOptimizers, self).configure_optimizers() for _ in range(2)]

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()


class LeftOut(QuietNet):
    """Every second batch makes do without the layer, which then has no gradient."""

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx) if batch_idx % 2 else self.head(batch).square().mean()

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(32, 4)


# regime -> model, and how many of the optimizer's steps its layer takes part in
SHARES: dict[str, tuple[type[QuietNet], float]] = {
    "layers used many times per forward": (Reused, 1),
    "layers left out of some batches": (LeftOut, 1 / 2),
    "tied weights": (Tied, 1),
    "a weight in two optimizers": (InTwoOptimizers, 1),
}


@supported("Parameters", *SHARES)
@pytest.mark.parametrize(("make", "part"), SHARES.values(), ids=SHARES)
def test_lambda_is_felt_once_per_step(tmp_path, make, part):
    """However many uses a weight has in a step, its hidden part decays once in it; without a use, not at all."""
    model, callback = make(), sparsity(decay=LAMBDA)
    start = dense_weights(model)
    with watched() as seen:
        trainer(tmp_path, callback).fit(model, data())
    steps = int(seen.steps * part)
    assert weight_of(callback).steps == steps
    assert_lambda(callback, start, steps)


@supported("Parameters", "tied weights")
def test_tied_weights_stay_tied(tmp_path):
    """One parameter before, one after, selected once."""
    model, callback = Tied(), sparsity()
    trainer(tmp_path, callback).fit(model, data())
    assert model.other.weight is model.layer.weight
    assert [w.name for w in callback.sparsifier.weights] == ["layer.weight"]


class PartlyFrozen(QuietNet):
    """``layer`` feeds a head; ``frozen`` until epoch ``thaws``."""

    def __init__(self, thaws: int, *, joins: bool) -> None:
        super().__init__()
        self.head = nn.Linear(8, 4)
        self.thaws, self.joins = thaws, joins
        self.layer.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.head.parameters() if self.joins else self.parameters(), LR)

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == self.thaws:
            self.layer.requires_grad_(True)
            if self.joins:
                self.trainer.optimizers[0].add_param_group({"params": self.layer.parameters()})


in_the_optimizer = pytest.mark.parametrize("joins", [False, True], ids=["all along", "when thawed"])


@supported("Parameters", "frozen layers")
@in_the_optimizer
def test_a_frozen_layer_is_masked_and_never_moves(tmp_path, joins):
    """Without gradients it keeps its mask and its hidden part, bit for bit."""
    model, callback = PartlyFrozen(thaws=99, joins=joins), sparsity(decay=LAMBDA)
    start = dense_weights(model)
    with watched():
        trainer(tmp_path, callback).fit(model, data())
    assert_exactly_2_4(model)
    weight = weight_of(callback)
    assert weight.steps == 0
    assert same_bits((weight.param + weight.hidden).detach(), start["layer.weight"])


@supported("Parameters", "layers unfrozen later", "parameter groups added later")
@in_the_optimizer
def test_a_thawed_layer_feels_lambda_from_then_on(tmp_path, joins):
    """One epoch frozen, two epochs trained: the decay of two."""
    model, callback = PartlyFrozen(thaws=1, joins=joins), sparsity(decay=LAMBDA)
    start = dense_weights(model)
    with watched():
        trainer(tmp_path, callback, max_epochs=3).fit(model, data())
    assert_exactly_2_4(model)
    assert_lambda(callback, start, 2 * BATCHES)


class Lazy(QuietNet):
    """The layer gets its shape from the first batch that it meets."""

    def __init__(self, *, meets_one: bool) -> None:
        super().__init__()
        self.layer = nn.LazyLinear(8)
        self.head = nn.Linear(8, 4)
        self.meets_one = meets_one

    def setup(self, stage: str) -> None:
        if self.meets_one:
            self(torch.zeros(1, 32))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x))


@supported("Parameters", "lazy layers")
@pytest.mark.parametrize("meets_one", [True, False], ids=["dry run", "no dry run"])
def test_a_lazy_layer_is_sparse_once_it_has_weights(tmp_path, meets_one):
    """Every forward but the one that gives it its weights meets them sparse."""
    model = Lazy(meets_one=meets_one)
    with watched():
        trainer(tmp_path, sparsity()).fit(model, data())
    assert_exactly_2_4(model)
