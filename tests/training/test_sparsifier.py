"""The training core around real optimizers, against the published formulation and the promises."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adam, AdamW, Optimizer
from torch.optim import optimizer as torch_optimizer

from lightning_nm.metrics.functional import sparse_architecture_divergence
from lightning_nm.patterns import NM
from lightning_nm.training import SRSTE, SSTE, STE, Frozen, Method, Schedule, SparseWeight, Sparsifier, select
from tests.oracles import hamming_by_hand, nm_mask_by_hand, raw
from tests.training.autograd_formulation import autograd_twin
from tests.training.runs import (
    dense_after_updates,
    loss_of,
    master,
    mlp,
    most_kept,
    noise,
    one_step,
    seeded,
    step_by_decay_alone,
)

sgd = partial(SGD, lr=0.3, momentum=0.9, weight_decay=1e-2)
adamw = partial(AdamW, lr=1e-2, weight_decay=1e-1)
lbfgs = partial(LBFGS, lr=0.5, max_iter=5)


def everything_sparse(model: nn.Module) -> bool:
    return all(most_kept(p, 4) <= 2 for p in model.parameters() if p.dim() == 2)


def same_bits(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(raw(p), raw(q)) for p, q in zip(first.parameters(), second.parameters(), strict=True))


def snapshot(weight: SparseWeight) -> tuple[Tensor, Tensor, Tensor, int]:
    return raw(weight.param).clone(), raw(weight.hidden).clone(), weight.mask.bits.clone(), weight.steps


def unchanged(weight: SparseWeight, before: tuple[Tensor, Tensor, Tensor, int]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(snapshot(weight)[:3], before[:3])) and weight.steps == before[3]


def closure_of(model: nn.Module, optimizer: Optimizer, seed: int = 0) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, seed)
        loss.backward()
        return loss

    return closure


# -- against the published formulation ------------------------------------------------------------------------

STEPS = 20
LAYERS = {"linear": lambda m: nn.Linear(4 * m, 6), "conv": lambda m: nn.Conv2d(2 * m, 4, 3)}
OPTIMIZERS = {
    "sgd": partial(SGD, lr=0.02, momentum=0.9, weight_decay=1e-2),
    "adamw": partial(AdamW, lr=1e-2, weight_decay=1e-1),
}


class Trace(NamedTuple):
    """A run's masks, its dense weights and its two SAD sequences, one entry for each step."""

    masks: list[Tensor]
    dense: list[Tensor]
    flips: list[int]
    since_start: list[int]


def data(layer: nn.Module, seed: int) -> tuple[Tensor, Tensor]:
    inputs = layer.weight.shape[1]
    x = noise(8, inputs, seed=seed) if isinstance(layer, nn.Linear) else noise(4, inputs, 4, 4, seed=seed)
    with torch.no_grad():
        return x, noise(*layer(x).shape, seed=100 + seed)


def train_both(kind: str, make: str, n: int, m: int, decay: float) -> tuple[Trace, Trace]:
    """The same layer on the same data: with a Sparsifier, and by the autograd formulation."""
    ours = seeded(lambda: LAYERS[kind](m))
    batches = [data(ours, seed) for seed in range(STEPS)]
    twin = autograd_twin(ours, n, m, decay)
    optimizer, twin_optimizer = OPTIMIZERS[make](ours.parameters()), OPTIMIZERS[make](twin.parameters())
    got, wanted = Trace([], [], [], []), Trace([], [], [], [])
    with Sparsifier(select(ours, NM(n, m)), SRSTE(decay)) as sparsifier:
        [weight] = sparsifier.weights
        our_start, start = weight.mask.clone(), twin.mask()
        mask = start
        for x, y in batches:
            for model, its_optimizer in ((ours, optimizer), (twin, twin_optimizer)):
                its_optimizer.zero_grad()
                (model(x) - y).square().mean().backward()
                its_optimizer.step()
            got.masks.append(weight.mask.unpack())
            got.dense.append(master(weight))
            got.flips.append(sparsifier.take_flips()["weight"])
            got.since_start.append(int(sparse_architecture_divergence(our_start, weight.mask)["count"]))
            before, mask = mask, twin.mask()
            wanted.masks.append(mask)
            wanted.dense.append(twin.weight.detach().clone())
            wanted.flips.append(hamming_by_hand(before, mask))
            wanted.since_start.append(hamming_by_hand(start, mask))
    return got, wanted


@pytest.fixture(scope="module", params=[(2, 4), (1, 4), (4, 8), (2, 8), (1, 16), (8, 16), (3, 7)], ids=str)
def pattern(request: pytest.FixtureRequest) -> tuple[int, int]:
    return request.param


@pytest.fixture(scope="module", params=[2e-4, 2e-2])
def decay(request: pytest.FixtureRequest) -> float:
    return request.param


@pytest.fixture(scope="module", params=OPTIMIZERS)
def make(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module", params=LAYERS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def traces(kind: str, make: str, pattern: tuple[int, int], decay: float) -> tuple[Trace, Trace]:
    return train_both(kind, make, *pattern, decay)


def test_masks_are_those_of_the_autograd_formulation(traces: tuple[Trace, Trace]) -> None:
    """SR-STE as published: the same mask after each of 20 steps, bit for bit."""
    got, wanted = traces
    assert [torch.equal(a, b) for a, b in zip(got.masks, wanted.masks)] == [True] * STEPS


def test_dense_weights_are_those_of_the_autograd_formulation(traces: tuple[Trace, Trace]) -> None:
    """SR-STE as published: the same dense master to 1e-6 after each of 20 steps."""
    got, wanted = traces
    assert max(float((a - b).abs().max()) for a, b in zip(got.dense, wanted.dense)) <= 1e-6


def test_flips_are_those_of_the_autograd_formulation(traces: tuple[Trace, Trace]) -> None:
    """SAD from step to step counts the same mask entries, and there are some."""
    got, wanted = traces
    assert sum(wanted.flips) > 0
    assert got.flips == wanted.flips


def test_sad_since_start_is_that_of_the_autograd_formulation(traces: tuple[Trace, Trace]) -> None:
    """SAD since the start is the same sequence."""
    got, wanted = traces
    assert got.since_start == wanted.since_start


# -- sparse outside, dense inside (promises 1 and 2) ------------------------------------------------------------

METHODS: list[Callable[[], Method]] = [SRSTE, STE, Frozen, SSTE]


@pytest.mark.parametrize("make", [sgd, adamw, lbfgs], ids=["sgd", "adamw", "lbfgs"])
@pytest.mark.parametrize("method", METHODS)
def test_every_forward_sees_sparse_weights(method: Callable[[], Method], make: Callable[..., Optimizer]) -> None:
    """Whatever evaluates the model, it evaluates it at weights that satisfy the pattern (promise 1)."""
    model = mlp()
    optimizer = make(model.parameters())
    seen: list[bool] = []
    model.register_forward_pre_hook(lambda *_: seen.append(everything_sparse(model)))
    with Sparsifier(select(model, "2:4"), method()):
        for step in range(4):
            optimizer.step(closure_of(model, optimizer, step))
    assert len(seen) >= 4
    assert all(seen)


@pytest.mark.parametrize("make", [sgd, adamw, lbfgs], ids=["sgd", "adamw", "lbfgs"])
@pytest.mark.parametrize("method", METHODS)
def test_after_every_step_weights_are_sparse(method: Callable[[], Method], make: Callable[..., Optimizer]) -> None:
    """Outside the optimizer step every selected weight satisfies its pattern (promise 1)."""
    model = mlp()
    optimizer = make(model.parameters())
    with Sparsifier(select(model, "2:4"), method()):
        for step in range(5):
            optimizer.step(closure_of(model, optimizer, step))
            assert everything_sparse(model)


@pytest.mark.parametrize("make", [sgd, adamw, lbfgs], ids=["sgd", "adamw", "lbfgs"])
def test_sparse_and_hidden_are_the_dense_weight(make: Callable[..., Optimizer]) -> None:
    """What the update left behind is the sum of the two parts, bit for bit (promise 2)."""
    model = mlp()
    optimizer = make(model.parameters())
    with Sparsifier(select(model, "2:4")) as sparsifier:
        weight = sparsifier.weights[0]
        with dense_after_updates(optimizer, weight.param) as dense:
            for step in range(5):
                optimizer.step(closure_of(model, optimizer, step))
                assert torch.equal(raw(master(weight)), raw(dense[-1]))


@pytest.mark.parametrize("make", [sgd, adamw], ids=["sgd", "adamw"])
def test_the_mask_is_that_of_the_dense_weight(make: Callable[..., Optimizer]) -> None:
    """The model sees the largest of the dense weights and zeros elsewhere."""
    model = mlp()
    optimizer = make(model.parameters())
    with Sparsifier(select(model, "2:4")) as sparsifier:
        weight = sparsifier.weights[0]
        with dense_after_updates(optimizer, weight.param) as dense:
            for step in range(5):
                one_step(model, optimizer, step)
                kept = nm_mask_by_hand(dense[-1], 2, 4)
                assert torch.equal(weight.param, torch.where(kept, dense[-1], 0.0))


def test_taking_the_weights_splits_them_at_once() -> None:
    """A Sparsifier's model is sparse before the first forward."""
    model = mlp()
    dense = model[0].weight.detach().clone()
    sparsifier = Sparsifier(select(model, "2:4"))
    assert everything_sparse(model)
    assert torch.equal(raw(master(sparsifier.weights[0])), raw(dense))


def test_the_model_keeps_its_keys_shapes_and_dtypes() -> None:
    """A checkpoint is the dense model's own (promise 3)."""
    model = mlp()
    layout = {name: (t.shape, t.dtype) for name, t in model.state_dict().items()}
    with Sparsifier(select(model, "2:4")):
        one_step(model, sgd(model.parameters()))
    assert {name: (t.shape, t.dtype) for name, t in model.state_dict().items()} == layout


# -- closures -------------------------------------------------------------------------------------------------------


def test_lbfgs_evaluates_its_closure_often() -> None:
    """So that the tests above mean something for LBFGS: one step, several closure calls."""
    model = mlp()
    optimizer = lbfgs(model.parameters())
    calls: list[int] = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    with Sparsifier(select(model, "2:4")):
        optimizer.step(closure_of(model, optimizer))
    assert len(calls) > 3


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_lbfgs_learns(search: str | None) -> None:
    """With or without a line search the loss at sparse weights goes down."""
    model = mlp()
    optimizer = lbfgs(model.parameters(), line_search_fn=search)
    with Sparsifier(select(model, "2:4")):
        before = loss_of(model).item()
        for _ in range(5):
            optimizer.step(closure_of(model, optimizer))
        assert loss_of(model).item() < before / 2


def test_one_lbfgs_step_is_one_step() -> None:
    """Steps are counted, not closure calls."""
    model = mlp()
    optimizer = lbfgs(model.parameters())
    with Sparsifier(select(model, "2:4")) as sparsifier:
        optimizer.step(closure_of(model, optimizer))
    assert sparsifier.steps == 1


@pytest.mark.parametrize("call", ["positional", "keyword"])
def test_sgd_with_a_closure_is_sgd_without(call: str) -> None:
    """However the closure is passed, the run is that of backward-then-step, bit for bit."""
    with_closure, without = mlp(), mlp()
    optimizer, plain_optimizer = sgd(with_closure.parameters()), sgd(without.parameters())
    with Sparsifier(select(with_closure, "2:4")), Sparsifier(select(without, "2:4")):
        for step in range(5):
            closure = closure_of(with_closure, optimizer, step)
            if call == "positional":
                optimizer.step(closure)
            else:
                optimizer.step(closure=closure)
            one_step(without, plain_optimizer, step)
    assert same_bits(with_closure, without)


def test_closures_leave_masks_between_refreshes() -> None:
    """However often LBFGS evaluates its closure, a mask moves only when the schedule refreshes it."""
    model = mlp()
    optimizer = lbfgs(model.parameters())
    with Sparsifier(select(model, "2:4"), schedule=Schedule(refresh=3)) as sparsifier:
        flips = []
        for step in range(6):
            optimizer.step(closure_of(model, optimizer, step))
            flips.append(sparsifier.take_flips()["0.weight"] > 0)
    assert flips == [False, False, True, False, False, True]


def test_a_closure_returns_its_loss() -> None:
    """``optimizer.step(closure)`` still returns what the closure returned."""
    model = mlp()
    optimizer = sgd(model.parameters())
    with Sparsifier(select(model, "2:4")):
        expected = loss_of(model).item()
        assert optimizer.step(closure_of(model, optimizer)).item() == expected


class TakesMore(SGD):
    """A ``step`` with an argument of its own behind the closure."""

    def step(self, closure: Callable[[], Any] | None = None, note: str = "") -> str:
        assert closure is not None
        with torch.enable_grad():
            closure()
        super().step()
        return note


def test_other_arguments_of_step_are_passed_on() -> None:
    """Wrapping the closure leaves the other arguments as they came."""
    model = mlp()
    optimizer = TakesMore(model.parameters(), lr=0.1)
    with Sparsifier(select(model, "2:4")):
        assert optimizer.step(closure_of(model, optimizer), "kept") == "kept"


class CallsSuper(SGD):
    """Its ``step`` and the one that it calls are both hooked by PyTorch."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        return super().step(closure)


@pytest.mark.parametrize("with_closure", [False, True])
def test_an_optimizer_that_calls_super_step_steps_once(with_closure: bool) -> None:
    """Nested hooks neither decay twice nor count two steps."""
    SGD([nn.Parameter(torch.ones(1))], lr=0.1)  # from now on SGD.step calls the hooks as well
    model, plain = mlp(), mlp()
    optimizer, plain_optimizer = CallsSuper(model.parameters(), lr=0.1), SGD(plain.parameters(), lr=0.1)
    with Sparsifier(select(model, "2:4"), SRSTE(0.5)) as sparsifier, Sparsifier(select(plain, "2:4"), SRSTE(0.5)):
        if with_closure:
            optimizer.step(closure_of(model, optimizer))
        else:
            one_step(model, optimizer)
        one_step(plain, plain_optimizer)
    assert same_bits(model, plain)
    assert sparsifier.steps == 1


class MovesAfterwards(SGD):
    """Moves the weights once more after ``super().step()``, as lookahead and noisy optimizers do."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:
        super().step(closure)
        for group in self.param_groups:
            for param in group["params"]:
                param.add_(0.01)


def test_an_optimizer_that_goes_on_after_super_step() -> None:
    """Only the outermost ``step`` ends the update: what follows an inner one is masked too (promise 1)."""
    SGD([nn.Parameter(torch.ones(1))], lr=0.1)  # from now on SGD.step calls the hooks as well
    model = mlp()
    optimizer = MovesAfterwards(model.parameters(), lr=0.1)
    with Sparsifier(select(model, "2:4")):
        one_step(model, optimizer)
        assert everything_sparse(model)


class SAM(Optimizer):
    """Sharpness-aware minimization (Foret et al., 2021): saves the weights, moves them uphill, and puts them back."""

    def __init__(self, params: Any, inner: type[Optimizer], **kwargs: Any) -> None:
        self.inner = inner(params, **kwargs)
        super().__init__(self.inner.param_groups, {})
        self.param_groups = self.inner.param_groups

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        params = [p for group in self.param_groups for p in group["params"]]
        saved = [p.data.clone() for p in params]
        norm = torch.stack([p.grad.norm() for p in params]).norm()
        for p in params:
            p.add_(p.grad, alpha=0.05 / float(norm))
        with torch.enable_grad():
            loss = closure()
        for p, before in zip(params, saved):
            p.data = before
        self.inner.step()
        return loss


def test_an_optimizer_that_moves_weights_before_its_closure() -> None:
    """SAM saves the dense weights and gets them back; what it perturbs is sparse in its closure, too."""
    model = mlp()
    optimizer = SAM(model.parameters(), SGD, lr=0.1)
    with Sparsifier(select(model, "2:4"), SRSTE(0.5)) as sparsifier:
        expected = [master(weight) for weight in sparsifier.weights]
        for step in range(4):
            at = [expected[0].clone(), expected[1].clone()]
            optimizer.zero_grad()
            loss_of(model, step).backward()
            grads = [weight.param.grad.clone() for weight in sparsifier.weights]
            norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
            seen: list[Tensor] = []

            def closure(step: int = step, seen: list[Tensor] = seen) -> Tensor:
                assert everything_sparse(model)
                seen.extend(weight.param.detach().clone() for weight in sparsifier.weights)
                return closure_of(model, optimizer, step)()

            optimizer.step(closure)
            for i, weight in enumerate(sparsifier.weights):
                uphill = at[i] + 0.05 * grads[i] / norm
                mask = nm_mask_by_hand(uphill, 2, 4)
                torch.testing.assert_close(seen[i], torch.where(mask, uphill, 0.0))
                # the decay at the perturbed hidden weights, the gradient at the perturbed sparse ones
                expected[i] = at[i] - 0.1 * weight.param.grad
                torch.testing.assert_close(master(weight), expected[i])
        assert sparsifier.steps == 4


# -- lambda is lambda -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batches", [1, 2, 4])
def test_accumulation_does_not_multiply_the_decay(batches: int) -> None:
    """Accumulating k micro-batches adds the decay once; measured where the data gradient is zero."""
    model = mlp()
    optimizer = SGD(model.parameters(), lr=0.25)
    with Sparsifier(select(model, "2:4"), SRSTE(decay=0.5)) as sparsifier:
        weight = sparsifier.weights[0]
        masked = ~weight.mask.unpack()
        before = weight.hidden[masked]
        for _ in range(batches):
            (model(noise(4, 8)) * 0).sum().backward()
        optimizer.step()
        effective = (1 - weight.hidden[masked] / before) / 0.25
    torch.testing.assert_close(effective, torch.full_like(effective, 0.5))


def test_masks_stay_while_micro_batches_accumulate() -> None:
    """Masks move once per optimizer step, not once per micro-batch."""
    model = mlp()
    optimizer = sgd(model.parameters())
    flips = []
    with Sparsifier(select(model, "2:4")) as sparsifier:
        for batch in range(4):
            loss_of(model, batch).backward()
            flips.append(sparsifier.take_flips()["0.weight"])
        optimizer.step()
        flips.append(sparsifier.take_flips()["0.weight"])
    assert flips[:4] == [0, 0, 0, 0]
    assert flips[4] > 0


def test_accumulated_gradients_are_those_of_the_whole_batch() -> None:
    """Two half batches make the step that the whole one makes."""
    halves, whole = mlp(), mlp()
    x = noise(8, 8)
    with Sparsifier(select(halves, "2:4"), SRSTE(2e-2)), Sparsifier(select(whole, "2:4"), SRSTE(2e-2)):
        optimizer, whole_optimizer = sgd(halves.parameters()), sgd(whole.parameters())
        for half in (x[:4], x[4:]):
            (halves(half).square().mean() / 2).backward()
        optimizer.step()
        whole(x).square().mean().backward()
        whole_optimizer.step()
    torch.testing.assert_close(halves.state_dict(), whole.state_dict())


class Twice(nn.Module):
    """A layer used twice in one forward."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.tanh(self.layer(x)))


class Tied(nn.Module):
    """Two layers that share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


@pytest.mark.parametrize("model_type", [Twice, Tied])
def test_reuse_does_not_multiply_the_decay(model_type: type[nn.Module]) -> None:
    """A weight used T times in a forward decays by lambda, not by T * lambda."""
    model = model_type()
    with Sparsifier(select(model, "2:4"), SRSTE(decay=0.5)) as sparsifier:
        [weight] = sparsifier.weights
        hidden = weight.hidden.clone()
        (model(noise(4, 8)) * 0).sum().backward()
        SGD(model.parameters(), lr=0.25).step()
    torch.testing.assert_close(weight.hidden, hidden * (1 - 0.25 * 0.5))


def test_tied_weights_stay_tied_and_sparse() -> None:
    """Both layers go on seeing the one sparse weight."""
    model = seeded(Tied)
    optimizer = sgd(model.parameters())
    with Sparsifier(select(model, "2:4")):
        for step in range(3):
            one_step(model, optimizer, step)
    assert model.second.weight is model.first.weight
    assert everything_sparse(model)


# -- which optimizer holds which weight -----------------------------------------------------------------------------


def test_each_optimizer_steps_its_own_weights() -> None:
    """A step of one optimizer leaves the weights of another as they are."""
    model = mlp()
    first = sgd(model[0].parameters())
    sgd(model[2].parameters())
    with Sparsifier(select(model, "2:4")) as sparsifier:
        stepped, other = sparsifier.weights
        before = snapshot(other)
        loss_of(model).backward()
        first.step()
        assert stepped.steps == 1
        assert unchanged(other, before)


def test_two_optimizers_train_as_one() -> None:
    """Splitting the parameters among optimizers changes nothing, bit for bit."""
    one, two = mlp(), mlp()
    single = sgd(one.parameters())
    pair = [sgd(two[0].parameters()), sgd(two[2].parameters())]
    with Sparsifier(select(one, "2:4")), Sparsifier(select(two, "2:4")):
        for step in range(4):
            one_step(one, single, step)
            two.zero_grad()
            loss_of(two, step).backward()
            for optimizer in pair:
                optimizer.step()
    assert same_bits(one, two)


def test_an_optimizer_of_other_parameters_is_left_alone() -> None:
    """Optimizers that hold no selected weight get their closure as it is."""
    other = nn.Linear(8, 4)
    optimizer = SGD(other.parameters(), lr=0.1)
    with Sparsifier(select(mlp(), "2:4")) as sparsifier:
        one_step(other, optimizer)
    assert sparsifier.steps == 0


def test_a_weight_without_gradient_is_left_alone() -> None:
    """No gradient, no update, no decay, no step."""
    model = mlp()
    optimizer = sgd(model.parameters())
    with Sparsifier(select(model, "2:4"), SRSTE(decay=0.5)) as sparsifier:
        first, last = sparsifier.weights
        before = snapshot(first)
        last.param.grad = torch.ones_like(last.param)
        optimizer.step()
        assert unchanged(first, before)
        assert last.steps == 1


def test_a_frozen_parameter_is_masked_and_never_decays() -> None:
    """``requires_grad=False``: sparse as selected, and from then on constant."""
    model = mlp()
    model[0].weight.requires_grad_(False)
    optimizer = sgd(model.parameters())
    with Sparsifier(select(model, "2:4"), SRSTE(decay=0.5)) as sparsifier:
        frozen = sparsifier.weights[0]
        before = snapshot(frozen)
        for step in range(3):
            one_step(model, optimizer, step)
    assert everything_sparse(model)
    assert unchanged(frozen, before)


def test_a_parameter_group_added_later_is_followed() -> None:
    """Weights that an optimizer takes in mid-way are trained like the others."""
    model = mlp()
    optimizer = sgd(model[2].parameters())
    with Sparsifier(select(model, "2:4")) as sparsifier:
        one_step(model, optimizer)
        optimizer.add_param_group({"params": list(model[0].parameters())})
        model[0].zero_grad()
        one_step(model, optimizer, 1)
        assert [w.steps for w in sparsifier.weights] == [1, 2]
        assert everything_sparse(model)


def test_an_optimizer_may_be_made_before_or_after() -> None:
    """The order of making the optimizer and attaching changes nothing, bit for bit."""
    early, late = mlp(), mlp()
    early_optimizer = sgd(early.parameters())
    with Sparsifier(select(early, "2:4")), Sparsifier(select(late, "2:4")):
        late_optimizer = sgd(late.parameters())
        for step in range(3):
            one_step(early, early_optimizer, step)
            one_step(late, late_optimizer, step)
    assert same_bits(early, late)


def test_an_optimizer_made_anew_is_followed() -> None:
    """A learning-rate finder or a second fit makes new optimizers for the same weights."""
    model = mlp()
    with Sparsifier(select(model, "2:4")) as sparsifier:
        for step in range(3):
            one_step(model, sgd(model.parameters()), step)
            assert everything_sparse(model)
    assert sparsifier.steps == 3


# -- gradient scalers -----------------------------------------------------------------------------------------------

SCALE = 1024.0


def scaled_step(model: nn.Module, optimizer: Optimizer, *, inf: bool = False, gradient: float = 0.0) -> None:
    """A step of constant data gradient under a gradient scaler; ``inf`` makes it one that is skipped."""
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    scaler.scale(torch.ones(()))  # the scale exists from the first use
    for param in model.parameters():
        param.grad = torch.full_like(param, gradient * SCALE)
    if inf:
        model[0].weight.grad[0, 0] = torch.inf
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("make", [SGD, Adam, AdamW])
def test_a_skipped_step_advances_nothing(make: Callable[..., Optimizer], fused: bool) -> None:
    """After infinite gradients the weights, hidden parts, masks and counters are as they were."""
    model = mlp()
    optimizer = make(model.parameters(), lr=0.1, fused=fused)
    with Sparsifier(select(model, "2:4"), SRSTE(decay=0.5)) as sparsifier:
        before = [snapshot(w) for w in sparsifier.weights]
        scaled_step(model, optimizer, inf=True)
        assert all(unchanged(w, b) for w, b in zip(sparsifier.weights, before))
        assert sparsifier.take_flips() == {"0.weight": 0, "2.weight": 0}


@pytest.mark.parametrize("fused", [False, True])
def test_training_goes_on_after_a_skipped_step(fused: bool) -> None:
    """The next finite step counts again."""
    model = mlp()
    optimizer = SGD(model.parameters(), lr=0.1, fused=fused)
    with Sparsifier(select(model, "2:4")) as sparsifier:
        scaled_step(model, optimizer, inf=True)
        scaled_step(model, optimizer, gradient=1.0)
        assert sparsifier.steps == 1
        assert everything_sparse(model)


@pytest.mark.parametrize("fused", [False, True])
def test_loss_scaling_does_not_change_the_decay(fused: bool) -> None:
    """Lambda is lambda, also where a fused optimizer unscales the gradients only inside its update."""
    model = mlp()
    optimizer = SGD(model.parameters(), lr=0.25, fused=fused)
    with Sparsifier(select(model, "2:4"), SRSTE(decay=0.5)) as sparsifier:
        hidden = sparsifier.weights[0].hidden.clone()
        scaled_step(model, optimizer)
        torch.testing.assert_close(sparsifier.weights[0].hidden, hidden * (1 - 0.25 * 0.5))


def test_a_fused_optimizer_whose_gradients_were_unscaled_before() -> None:
    """After ``scaler.unscale_`` (to clip) the gradients carry no scale, and neither may the decay."""
    model = mlp()
    optimizer = SGD(model.parameters(), lr=0.25, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    with Sparsifier(select(model, "2:4"), SRSTE(decay=0.5)) as sparsifier:
        hidden = sparsifier.weights[0].hidden.clone()
        scaler.scale((model(noise(4, 8)) * 0).sum()).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        torch.testing.assert_close(sparsifier.weights[0].hidden, hidden * (1 - 0.25 * 0.5))


def test_a_fused_scaled_run_is_the_plain_run() -> None:
    """AdamW(fused=True) under a scaler follows unscaled AdamW, decay and all."""
    scaled, plain = mlp(), mlp()
    optimizer, plain_optimizer = adamw(scaled.parameters(), fused=True), adamw(plain.parameters(), fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    with Sparsifier(select(scaled, "2:4"), SRSTE(0.5)), Sparsifier(select(plain, "2:4"), SRSTE(0.5)):
        for step in range(5):
            optimizer.zero_grad()
            scaler.scale(loss_of(scaled, step)).backward()
            scaler.step(optimizer)
            scaler.update()
            one_step(plain, plain_optimizer, step)
    torch.testing.assert_close(scaled.state_dict(), plain.state_dict(), rtol=1e-5, atol=1e-6)


# -- exceptions -----------------------------------------------------------------------------------------------------


class Stop(Exception):
    """What the tests raise."""


class BreaksOff(SGD):
    """Moves the first parameter and raises."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:
        self.param_groups[0]["params"][0].add_(0.1)
        raise Stop


def test_an_exception_in_the_closure_leaves_weights_sparse() -> None:
    """Also in a later call of the closure, when the weights have been dense in between (promise 1)."""
    model = mlp()
    optimizer = lbfgs(model.parameters())
    calls: list[int] = []

    def closure() -> Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise Stop
        return closure_of(model, optimizer)()

    with pytest.raises(Stop), Sparsifier(select(model, "2:4")):
        optimizer.step(closure)
    assert everything_sparse(model)


def test_an_exception_in_the_update_leaves_weights_sparse() -> None:
    """Leaving the ``with`` block restores what the exception left dense (promise 1)."""
    model = mlp()
    with pytest.raises(Stop), Sparsifier(select(model, "2:4")):
        one_step(model, BreaksOff(model.parameters(), lr=0.1))
    assert everything_sparse(model)


def test_restore_repairs_without_leaving() -> None:
    """``restore`` does the same in mid-training, and loses nothing of the dense weight."""
    model = mlp()
    with Sparsifier(select(model, "2:4")) as sparsifier:
        first, last = sparsifier.weights
        dense = [master(first) + 0.1, master(last)]
        with pytest.raises(Stop):
            one_step(model, BreaksOff(model.parameters(), lr=0.1))
        sparsifier.restore()
        assert everything_sparse(model)
        assert [torch.equal(raw(master(w)), raw(d)) for w, d in zip((first, last), dense)] == [True, True]
        assert sparsifier.steps == 0


def test_a_step_after_a_broken_one_opens_weights_once() -> None:
    """Without ``restore`` between, the next step must not add the hidden part twice."""
    model = mlp()
    with Sparsifier(select(model, "2:4"), STE()) as sparsifier:
        last = sparsifier.weights[1]
        dense = master(last)
        with pytest.raises(Stop):
            one_step(model, BreaksOff(model.parameters(), lr=0.1))
        step_by_decay_alone(model, SGD(model.parameters(), lr=0.1))
        assert torch.equal(raw(master(last)), raw(dense))


def test_nan_in_training_names_weight_and_step() -> None:
    """A diverged run stops at once with the weight's name and the optimizer step (promise 7)."""
    model = mlp()
    optimizer = sgd(model.parameters())
    with Sparsifier(select(model, "2:4")):
        one_step(model, optimizer)
        model[0].weight.grad.fill_(torch.nan)
        with pytest.raises(ValueError, match=r"0\.weight .*optimizer step 2"):
            optimizer.step()


def test_nan_in_some_weights_leaves_the_others_sparse() -> None:
    """Several diverged weights do not keep the finite ones from becoming sparse again (promise 1)."""
    model = nn.Sequential(*[nn.Linear(8, 8) for _ in range(3)])
    optimizer = SGD(model.parameters(), lr=0.1)
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    for layer in (model[0], model[1]):
        layer.weight.grad[0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaN"), Sparsifier(select(model, "2:4")):
        optimizer.step()
    assert most_kept(model[2].weight, 4) == 2


def test_nan_weights_are_refused_at_the_start() -> None:
    """Before training too (promise 7)."""
    model = mlp()
    nn.init.constant_(model[2].weight, torch.nan)
    with pytest.raises(ValueError, match=r"2\.weight .*optimizer step 0"):
        Sparsifier(select(model, "2:4"))


# -- attaching ------------------------------------------------------------------------------------------------------


def hook_counts() -> tuple[int, int]:
    return len(torch_optimizer._global_optimizer_pre_hooks), len(torch_optimizer._global_optimizer_post_hooks)


def test_leaving_removes_the_hooks() -> None:
    """PyTorch's global hooks are as many as before."""
    before = hook_counts()
    with Sparsifier(select(mlp(), "2:4")):
        assert hook_counts() == (before[0] + 1, before[1] + 1)
    assert hook_counts() == before


def test_an_exception_removes_the_hooks() -> None:
    """However the block is left."""
    before = hook_counts()
    with pytest.raises(Stop), Sparsifier(select(mlp(), "2:4")):
        raise Stop
    assert hook_counts() == before


def test_later_steps_are_none_of_its_business() -> None:
    """After ``detach`` an optimizer trains the sparse values as a dense weight."""
    model = mlp()
    with Sparsifier(select(model, "2:4")):
        pass
    plain = copy.deepcopy(model)
    one_step(model, sgd(model.parameters()))
    one_step(plain, sgd(plain.parameters()))
    assert same_bits(model, plain)


def test_attaching_twice_is_attaching_once() -> None:
    """The hooks are there once, and one ``detach`` takes them away."""
    before = hook_counts()
    sparsifier = Sparsifier(select(mlp(), "2:4"))
    sparsifier.attach()
    sparsifier.attach()
    assert hook_counts() == (before[0] + 1, before[1] + 1)
    sparsifier.detach()
    assert hook_counts() == before


def test_an_inner_with_block_counts_steps_once() -> None:
    """Attaching again in mid-training does not decay or count twice."""
    model = mlp()
    with Sparsifier(select(model, "2:4"), SRSTE(decay=0.5)) as sparsifier:
        sparsifier.attach()
        hidden = sparsifier.weights[0].hidden.clone()
        step_by_decay_alone(model, SGD(model.parameters(), lr=0.25))
        torch.testing.assert_close(sparsifier.weights[0].hidden, hidden * (1 - 0.25 * 0.5))
        assert sparsifier.steps == 1


# -- state and resuming (promise 2) ---------------------------------------------------------------------------------


def leaves(state: Any) -> Iterator[Any]:
    """Every value in nested dicts and lists, and every key."""
    if type(state) is dict:
        for key, value in state.items():
            yield key
            yield from leaves(value)
    elif type(state) is list:
        for value in state:
            yield from leaves(value)
    else:
        yield state


@pytest.mark.parametrize("method", METHODS)
def test_state_is_tensors_and_builtins(method: Callable[[], Method]) -> None:
    """So that ``weights_only`` loading takes it, now and in every later release."""
    model = mlp()
    with Sparsifier(select(model, "2:4"), method()) as sparsifier:
        one_step(model, sgd(model.parameters()))
    allowed = (Tensor, str, int, float, type(None))
    assert [type(v) for v in leaves(sparsifier.state_dict()) if type(v) not in allowed] == []


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def run(
    make: Callable[..., Optimizer], method: Callable[[], Method], schedule: Schedule, *, stop_at: int | None
) -> tuple[nn.Module, Sparsifier]:
    """Nine steps; ``stop_at``: interrupted there and resumed in a new model, optimizer and Sparsifier."""
    model = mlp()
    optimizer = make(model.parameters())
    sparsifier = Sparsifier(select(model, "2:4"), method(), schedule)
    for step in range(9):
        if step == stop_at:
            saved = through_a_file([model.state_dict(), optimizer.state_dict(), sparsifier.state_dict()])
            model = mlp(seed=1)
            optimizer = make(model.parameters())
            sparsifier = Sparsifier(select(model, "2:4"), method(), schedule)
            model.load_state_dict(saved[0])
            optimizer.load_state_dict(saved[1])
            sparsifier.load_state_dict(saved[2])
        with sparsifier:
            one_step(model, optimizer, step)
    return model, sparsifier


RESUMES = pytest.mark.parametrize(
    ("make", "method", "schedule", "stop_at"),
    [
        (sgd, SRSTE, Schedule(), 4),
        (adamw, SRSTE, Schedule(), 4),
        (sgd, SRSTE, Schedule(refresh=3), 4),
        (adamw, SRSTE, Schedule(refresh=3), 5),
        (sgd, SSTE, Schedule(), 4),
        (sgd, SSTE, Schedule(refresh=3), 4),
        (sgd, Frozen, Schedule(), 4),
        (sgd, SRSTE, Schedule(start=6), 4),
        (sgd, SRSTE, Schedule(start=3, ramp=8), 5),
        (sgd, SRSTE, Schedule(dense_from=3), 5),
        (sgd, SRSTE, Schedule(freeze=3), 5),
    ],
    ids=[
        "sgd",
        "adamw",
        "between refreshes",
        "adamw between refreshes",
        "s-ste",
        "s-ste between refreshes",
        "frozen",
        "before the start",
        "in the ramp",
        "in the dense tail",
        "after the freeze",
    ],
)


@RESUMES
def test_resuming_continues_the_weights(
    make: Callable[..., Optimizer], method: Callable[[], Method], schedule: Schedule, stop_at: int
) -> None:
    """An interrupted and resumed run ends at the weights of the uninterrupted one, bit for bit (promise 2)."""
    whole, _ = run(make, method, schedule, stop_at=None)
    resumed, _ = run(make, method, schedule, stop_at=stop_at)
    assert same_bits(whole, resumed)


@RESUMES
def test_resuming_continues_the_state(
    make: Callable[..., Optimizer], method: Callable[[], Method], schedule: Schedule, stop_at: int
) -> None:
    """Hidden parts, masks and counters too (promise 2)."""
    _, whole = run(make, method, schedule, stop_at=None)
    _, resumed = run(make, method, schedule, stop_at=stop_at)
    expected, got = list(leaves(whole.state_dict())), list(leaves(resumed.state_dict()))
    assert len(got) == len(expected)
    assert all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(got, expected))


def test_adopting_restored_state_is_loading_it() -> None:
    """Taking the weights and restoring them can be one call, and reports nothing replaced."""
    model, sparsifier = run(sgd, SRSTE, Schedule(), stop_at=None)
    fresh = mlp(seed=1)
    resumed = Sparsifier(select(fresh, "2:4"))
    fresh.load_state_dict(model.state_dict())
    assert resumed.adopt(select(fresh, "2:4"), sparsifier.state_dict()) == []
    assert [torch.equal(raw(master(a)), raw(master(b))) for a, b in zip(resumed.weights, sparsifier.weights)] == [
        True,
        True,
    ]


def other_states() -> dict[str, tuple[dict[str, Any], str]]:
    """States that do not belong to an `mlp` with 2:4 SR-STE, and what the error must name."""
    state = Sparsifier(select(mlp(), "2:4")).state_dict()
    wider = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 8))
    return {
        "another pattern": (Sparsifier(select(mlp(), "1:4")).state_dict(), r"0\.weight.*pattern 1:4"),
        "another method": (Sparsifier(select(mlp(), "2:4"), Frozen()).state_dict(), r"0\.weight.*method Frozen"),
        "another shape": (Sparsifier(select(wider, "2:4")).state_dict(), r"0\.weight.*\[16, 16\].*\[16, 8\]"),
        "a missing layer": ({"0.weight": state["0.weight"]}, r"not in the checkpoint: \['2\.weight'\]"),
        "a further layer": ({**state, "4.weight": state["0.weight"]}, r"not selected: \['4\.weight'\]"),
        "other names": (Sparsifier(select(Twice(), "2:4")).state_dict(), r"layer\.weight"),
    }


@pytest.mark.parametrize("which", list(other_states()))
@pytest.mark.parametrize("how", ["load_state_dict", "adopt"])
def test_state_of_another_run_is_refused(which: str, how: str) -> None:
    """A checkpoint that does not belong here is refused with the layer's name (promise 7)."""
    state, named = other_states()[which]
    model = mlp()
    sparsifier = Sparsifier(select(model, "2:4"))
    with pytest.raises(ValueError, match=named):
        sparsifier.load_state_dict(state) if how == "load_state_dict" else sparsifier.adopt(select(model), state)


def test_state_whose_model_was_not_loaded_is_refused() -> None:
    """Loading hidden parts beside weights that are not theirs must not drop them in silence (promise 7)."""
    _, sparsifier = run(sgd, SRSTE, Schedule(), stop_at=None)
    with pytest.raises(ValueError, match=r"0\.weight"):
        Sparsifier(select(mlp(seed=1), "2:4")).load_state_dict(sparsifier.state_dict())


# -- taking the weights again ---------------------------------------------------------------------------------------


def test_adopting_again_changes_nothing() -> None:
    """Where nothing has changed, nothing happens."""
    model = mlp()
    sparsifier = Sparsifier(select(model, "2:4"))
    before = [snapshot(w) for w in sparsifier.weights]
    assert sparsifier.adopt(select(model, "2:4")) == []
    assert all(unchanged(w, b) for w, b in zip(sparsifier.weights, before))


def test_a_replaced_parameter_is_followed() -> None:
    """A new Parameter of the same values (a strategy's wrapping) goes on where the old one was."""
    wrapped, plain = mlp(), mlp()
    with Sparsifier(select(wrapped, "2:4")) as sparsifier, Sparsifier(select(plain, "2:4")):
        one_step(wrapped, SGD(wrapped.parameters(), lr=0.3))
        wrapped[0].weight = nn.Parameter(wrapped[0].weight.detach().clone())
        assert sparsifier.adopt(select(wrapped, "2:4")) == []
        one_step(wrapped, SGD(wrapped.parameters(), lr=0.3), 1)
        one_step(plain, SGD(plain.parameters(), lr=0.3))
        one_step(plain, SGD(plain.parameters(), lr=0.3), 1)
    assert same_bits(wrapped, plain)


def test_a_converted_model_keeps_its_hidden_parts() -> None:
    """``model.bfloat16()`` after the split: hidden parts follow in the new dtype, masks stay."""
    model = mlp()
    sparsifier = Sparsifier(select(model, "2:4"))
    hidden = sparsifier.weights[0].hidden.clone()
    masks = {name: mask.clone() for name, mask in sparsifier.masks().items()}
    model.bfloat16()
    assert sparsifier.adopt(select(model, "2:4")) == []
    assert torch.equal(raw(sparsifier.weights[0].hidden), raw(hidden.bfloat16()))
    assert all(mask.distance(masks[name]) == 0 for name, mask in sparsifier.masks().items())


def test_weights_loaded_afterwards_count_as_dense() -> None:
    """Pretrained weights loaded after the first split are noticed, by name, and split anew."""
    model, pretrained = mlp(), mlp(seed=1)
    sparsifier = Sparsifier(select(model, "2:4"))
    model.load_state_dict(pretrained.state_dict())
    assert sparsifier.adopt(select(model, "2:4")) == ["0.weight", "2.weight"]
    assert torch.equal(raw(master(sparsifier.weights[0])), raw(pretrained[0].weight))
    assert everything_sparse(model)


def test_only_the_loaded_weights_are_named() -> None:
    """A weight that was left as it was keeps its hidden part."""
    model = mlp()
    sparsifier = Sparsifier(select(model, "2:4"))
    before = snapshot(sparsifier.weights[0])
    model[2].load_state_dict(mlp(seed=1)[2].state_dict())
    assert sparsifier.adopt(select(model, "2:4")) == ["2.weight"]
    assert unchanged(sparsifier.weights[0], before)


def test_weights_that_appear_later_are_taken_in() -> None:
    """What a model gets after the first look is sparse after the next."""
    model = mlp()
    sparsifier = Sparsifier(select(model, "2:4"))
    model.append(nn.Linear(8, 8))
    assert sparsifier.adopt(select(model, "2:4")) == []
    assert everything_sparse(model)


def test_a_change_of_pattern_keeps_the_dense_weight() -> None:
    """Taken again with another pattern, the new mask is chosen from the dense weight, not from the sparse one."""
    model = mlp()
    dense = model[0].weight.detach().clone()
    sparsifier = Sparsifier(select(model, "1:4"))
    sparsifier.adopt(select(model, "2:4"))
    assert torch.equal(raw(master(sparsifier.weights[0])), raw(dense))


@pytest.mark.parametrize("method", METHODS)
def test_weights_edited_between_steps_are_kept(method: Callable[[], Method]) -> None:
    """Whoever scales or loads sparse weights of the same mask between steps trains on from those values."""
    model = mlp()
    optimizer = SGD(model.parameters(), lr=0.0)
    with Sparsifier(select(model, "2:4"), method()) as sparsifier:
        edited = model[0].weight.detach() * 2
        with torch.no_grad():
            model[0].weight.copy_(edited)
        sparsifier.adopt(select(model, "2:4"))
        one_step(model, optimizer)
    assert torch.equal(model[0].weight, edited)


def test_weights_loaded_between_steps_are_noticed() -> None:
    """A plain loop that loads a dense state dict trains on from it: the old hidden part is not added to it."""
    model, fresh = mlp(), mlp(seed=1)
    optimizer = SGD(model.parameters(), lr=0.0)
    with Sparsifier(select(model, "2:4")) as sparsifier:
        one_step(model, optimizer)
        model.load_state_dict(fresh.state_dict())
        one_step(model, optimizer)
    for weight in sparsifier.weights:
        assert torch.equal(raw(master(weight)), raw(fresh.get_parameter(weight.name).detach()))


def test_a_copy_serves_the_copied_model() -> None:
    """Deepcopy of model and sparsifier: the copy, once attached, keeps its own model sparse and moves no other."""
    model = mlp()
    with Sparsifier(select(model, "2:4")) as sparsifier:
        twin, other = copy.deepcopy((sparsifier, model))
    before = [p.detach().clone() for p in model.parameters()]
    with twin:
        one_step(other, SGD(other.parameters(), lr=0.3))
    assert everything_sparse(other)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before))
