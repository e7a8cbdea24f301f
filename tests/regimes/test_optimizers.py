"""Every optimizer of PyTorch's, several at once, by hand: in real Trainer runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.optim import Optimizer, lr_scheduler

from tests.helpers import trainer
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
    hidden_left,
    sparsity,
    steps_of,
    watched,
    weight_of,
)
from tests.training.autograd_formulation import autograd_twin

STEPS = 2 * BATCHES

# every class of torch.optim that takes dense float weights, each by settings that have state to get wrong
OPTIMIZERS: dict[str, dict[str, Callable[..., Optimizer]]] = {
    "`SGD`, `ASGD`": {
        "SGD": partial(optim.SGD, lr=0.5, momentum=0.9, nesterov=True, weight_decay=1e-2),
        "ASGD": partial(optim.ASGD, lr=0.5),
    },
    "`Adam`, `AdamW`, `NAdam`, `RAdam`, `Adamax`": {
        "Adam": partial(optim.Adam, lr=1e-2, weight_decay=1e-2, amsgrad=True),
        "AdamW": partial(optim.AdamW, lr=1e-2),
        "NAdam": partial(optim.NAdam, lr=1e-2),
        "RAdam": partial(optim.RAdam, lr=1e-2),
        "Adamax": partial(optim.Adamax, lr=1e-2),
    },
    "`Adagrad`, `Adadelta`, `RMSprop`, `Rprop`": {
        "Adagrad": partial(optim.Adagrad, lr=1e-2),
        "Adadelta": partial(optim.Adadelta, lr=1.0),
        "RMSprop": partial(optim.RMSprop, lr=1e-3, momentum=0.9, centered=True),
        "Rprop": partial(optim.Rprop, lr=1e-3),
    },
    "`Adafactor`, `Muon`": {
        "Adafactor": partial(optim.Adafactor, lr=1e-2),
        "Muon": partial(optim.Muon, lr=1e-2),
    },
    "`LBFGS`": {
        "LBFGS": partial(optim.LBFGS, lr=0.5, max_iter=4),
        "LBFGS with line search": partial(optim.LBFGS, lr=0.5, max_iter=4, line_search_fn="strong_wolfe"),
    },
    "`foreach`, `fused`": {
        "AdamW, foreach": partial(optim.AdamW, lr=1e-2, foreach=True),
        "AdamW, one by one": partial(optim.AdamW, lr=1e-2, foreach=False),
        "AdamW, fused": partial(optim.AdamW, lr=1e-2, fused=True),
        "SGD, fused": partial(optim.SGD, lr=0.1, momentum=0.9, fused=True),
        "Adagrad, fused": partial(optim.Adagrad, lr=1e-2, fused=True),
    },
}
ALL = {name: make for some in OPTIMIZERS.values() for name, make in some.items()}


class Optimized(QuietNet):
    """A Linear without bias, for Muon takes matrices only, trained by what ``make`` gives."""

    def __init__(self, make: Callable[..., Optimizer]) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 8, bias=False)
        self.make = make

    def configure_optimizers(self) -> Optimizer:
        return self.make(self.parameters())


@supported("Optimizers", *OPTIMIZERS)
@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_trains_as_the_published_formulation_does(tmp_path, make):
    """Masks and dense weights are those of SR-STE inside the layer, trained by the same optimizer."""
    model, callback = Optimized(make), sparsity(decay=LAMBDA)
    with watched() as seen:
        trainer(tmp_path, callback, precision="64-true").fit(model, data())
    assert_exactly_2_4(model)
    assert steps_of(callback) == seen.steps == STEPS
    published = Optimized(make)
    published.layer = autograd_twin(published.layer, 2, 4, LAMBDA)
    trainer(tmp_path, precision="64-true").fit(published, data())
    weight = weight_of(callback)
    assert torch.equal(weight.mask.unpack(), published.layer.mask())
    torch.testing.assert_close(weight.param + weight.hidden, published.layer.weight.data, rtol=0, atol=1e-12)


def test_every_optimizer_is_looked_at():
    """A new PyTorch's new optimizer goes into the table above. (SparseAdam wants sparse gradients.)"""
    known = {name for name, thing in vars(optim).items() if isinstance(thing, type) and issubclass(thing, Optimizer)}
    assert {make.func.__name__ for make in ALL.values()} == known - {"Optimizer", "SparseAdam"}


@supported("Optimizers", "`LBFGS`")
def test_every_closure_of_lbfgs_sees_sparse_weights(tmp_path):
    """It calls the closure, and so the forward, several times a step; lambda's step is counted once."""
    model, callback = Optimized(ALL["LBFGS"]), sparsity()
    with watched() as seen:
        trainer(tmp_path, callback).fit(model, data())
    assert seen.forwards > 2 * STEPS
    assert steps_of(callback) == seen.steps == STEPS


# -- learning rates that move --------------------------------------------------------------------------

SCHEDULES: dict[str, Callable[[Optimizer], Any]] = {
    "StepLR": lambda optimizer: lr_scheduler.StepLR(optimizer, 1, 0.9),
    "CosineAnnealingLR": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, STEPS),
    "OneCycleLR": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, LR, STEPS, cycle_momentum=False),
}


@supported("Optimizers", "learning-rate schedulers")
@pytest.mark.parametrize("interval", ["step", "epoch"])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_lambda_goes_with_the_learning_rate(tmp_path, schedule, interval):
    """Hidden weights shrink by the product of 1 - lr * lambda over the rates of all steps."""

    class Scheduled(QuietNet):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            return [optimizer], [{"scheduler": schedule(optimizer), "interval": interval}]

        def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
            rates.append(optimizer.param_groups[0]["lr"])

    rates: list[float] = []
    model, callback = Scheduled(), sparsity(decay=LAMBDA)
    start = dense_weights(model)
    trainer(tmp_path, callback).fit(model, data())
    assert len(set(rates)) > 1
    expected = torch.tensor(rates, dtype=torch.float64).mul(-LAMBDA).add(1).prod()
    left = hidden_left(callback, start)
    torch.testing.assert_close(left, expected.expand_as(left), rtol=1e-5, atol=0)


@supported("Optimizers", "`optimizer_step` overridden")
def test_a_module_may_decide_when_to_step(tmp_path):
    """Batches whose update the module leaves out move nothing; lambda is felt in the others."""

    class EverySecond(QuietNet):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any) -> None:
            if batch_idx % 2:
                super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
            else:
                optimizer_closure()

    model, callback = EverySecond(), sparsity(decay=LAMBDA)
    start = dense_weights(model)
    with watched() as seen:
        trainer(tmp_path, callback).fit(model, data())
    assert steps_of(callback) == seen.steps == STEPS // 2
    assert_lambda(callback, start, seen.steps)


# -- several optimizers, by hand -----------------------------------------------------------------------


class Two(QuietNet):
    """Two layers with an optimizer each; ``other`` is stepped at every second batch only."""

    def __init__(self, *, raw: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.raw = raw
        self.other = Quiet()

    def configure_optimizers(self) -> list[Optimizer]:
        return [optim.SGD(layer.parameters(), LR) for layer in (self.layer, self.other)]

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        first, second = self.optimizers(use_pl_optimizer=not self.raw)
        for layer, optimizer in ((self.layer, first), (self.other, second)):
            if optimizer is first or batch_idx % 2:
                optimizer.zero_grad()
                self.manual_backward((layer(batch) - 1).square().mean() / 10)
                optimizer.step()


@supported("Optimizers", "manual optimization, several optimizers", "raw optimizers")
@pytest.mark.parametrize("raw", [False, True], ids=["Lightning's", "raw"])
def test_each_optimizer_keeps_to_its_own_weights(tmp_path, raw):
    """A layer feels lambda in its own optimizer's steps, and nothing in the other one's."""
    model, callback = Two(raw=raw), sparsity(decay=LAMBDA)
    start = dense_weights(model)
    with watched() as seen:
        trainer(tmp_path, callback).fit(model, data())
    assert seen.steps == STEPS + STEPS // 2
    assert_lambda(callback, start, STEPS)
    assert_lambda(callback, start, STEPS // 2, "other.weight")


class Gan(QuietNet):
    """``layer`` and ``back`` generate what ``critic`` judges; each is frozen while the other learns."""

    def __init__(self, *, toggles: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.toggles = toggles
        self.back = nn.Linear(8, 32)
        self.critic = Quiet()

    def configure_optimizers(self) -> list[Optimizer]:
        return [
            optim.SGD([*self.layer.parameters(), *self.back.parameters()], LR),
            optim.SGD(self.critic.parameters(), LR),
        ]

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        for optimizer, wanted in zip(self.optimizers(), (1, -1), strict=True):
            if self.toggles:
                self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward((self.critic(self.back(self.layer(batch))) - wanted).square().mean() / 10)
            optimizer.step()
            if self.toggles:
                self.untoggle_optimizer(optimizer)


@supported("Optimizers", "`toggle_optimizer` (GANs)")
@pytest.mark.parametrize("toggles", [True, False], ids=["toggled", "not toggled"])
def test_generator_and_critic_feel_lambda_in_their_own_steps(tmp_path, toggles):
    """Whether the other one's gradients are computed and left over, or not at all."""
    model, callback = Gan(toggles=toggles), sparsity(decay=LAMBDA)
    start = dense_weights(model)
    with watched() as seen:
        trainer(tmp_path, callback).fit(model, data())
    assert seen.steps == 2 * STEPS
    assert_exactly_2_4(model)
    for name in ("layer.weight", "critic.weight"):
        assert_lambda(callback, start, STEPS, name)
