"""What each method does with the hidden part, against formulas written out by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from lightning_nm.patterns import NM, PackedMask, Pattern
from lightning_nm.training import (
    SRSTE,
    SSTE,
    STE,
    Frozen,
    Method,
    Schedule,
    Sparsifier,
    Update,
    named_method,
    select,
)
from tests.oracles import nm_mask_by_hand, raw
from tests.training.runs import loss_of, master, mlp, most_kept, noise, one_step
from tests.training.runs import step_by_decay_alone as decay_step


def trained(method: Method, steps: int = 6, schedule: Schedule | None = None) -> tuple[nn.Module, Sparsifier]:
    model = mlp()
    optimizer = SGD(model.parameters(), lr=0.3, momentum=0.9, weight_decay=1e-2)
    with Sparsifier(select(model, "2:4"), method, schedule) as sparsifier:
        for step in range(steps):
            one_step(model, optimizer, step)
    return model, sparsifier


def same_bits(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(raw(p), raw(q)) for p, q in zip(first.parameters(), second.parameters(), strict=True))


# -- the base class ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_split_is_what_the_fused_kernel_does(dtype: torch.dtype) -> None:
    """`Method.split` documents the kernel that replaces it: same bits, signs of zeros included."""
    dense = noise(4, 8).to(dtype)
    dense[0, :4] = torch.tensor([0.0, -0.0, -0.0, 0.0])
    mask = NM(2, 4).mask(dense)
    sparse, hidden = Method().split(dense, mask)
    weight, removed = dense.clone(), torch.empty_like(dense)
    NM(2, 4).split_(weight, removed, torch.zeros(4, dtype=torch.uint8))
    assert torch.equal(raw(sparse), raw(weight))
    assert torch.equal(raw(hidden), raw(removed))


def test_every_weight_has_its_own_copy() -> None:
    """A method may hold state, so no two weights share one."""
    method = SRSTE()
    first, second = (w.method for w in Sparsifier(select(mlp(), "2:4"), method).weights)
    assert first is not second
    assert method not in (first, second)


class Halved(Method):
    """The model sees half of what is kept; counts its splits."""

    def __init__(self) -> None:
        self.splits = 0

    def split(self, dense: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        self.splits += 1
        return torch.where(mask, dense / 2, 0.0), torch.where(mask, -0.0, dense)

    def merge(self, sparse: Tensor, hidden: Tensor) -> Tensor:
        return sparse * 2 + hidden

    def state_dict(self) -> dict[str, Tensor | float]:
        return {"splits": self.splits}

    def load_state_dict(self, state: dict[str, Tensor | float]) -> None:
        self.splits = int(state["splits"])


def test_a_method_of_your_own_splits_and_merges() -> None:
    """Its own ``split`` and ``merge`` are used at every step, and the dense weight survives them bit for bit."""
    model = mlp()
    dense = model[0].weight.detach().clone()
    optimizer = SGD(model.parameters(), lr=0.3)
    with Sparsifier(select(model, "2:4"), Halved()) as sparsifier:
        weight = sparsifier.weights[0]
        for step in range(4):
            mask = nm_mask_by_hand(dense, 2, 4)
            assert torch.equal(weight.param, torch.where(mask, dense / 2, 0.0))
            optimizer.zero_grad()
            loss_of(model, step).backward()
            dense.add_(weight.param.grad, alpha=-0.3)
            optimizer.step()


def test_the_state_of_your_own_method_is_saved() -> None:
    """``state_dict()`` of a method travels with the weight's."""
    _, sparsifier = trained(Halved(), steps=5)
    resumed = Sparsifier(select(mlp(), "2:4"), Halved())
    model, _ = trained(Halved(), steps=5)
    resumed.adopt(select(model, "2:4"), sparsifier.state_dict())
    assert [w.method.splits for w in resumed.weights] == [6, 6]


class Pulled(Method):
    """Says what its gradient term is."""

    def gradient_factor(self, update: Update) -> float:
        return 0.25 * update.strength


class AddedByHand(Method):
    """Adds the same term itself."""

    def regularize(self, grad: Tensor, hidden: Tensor | None, mask: PackedMask, update: Update) -> None:
        grad.add_(hidden, alpha=0.25 * update.strength)


def test_a_gradient_factor_is_a_gradient_term() -> None:
    """A term that is a factor of the hidden part needs no code of its own; not a bit changes where it is fused."""
    ramp = Schedule(ramp=4)
    assert same_bits(trained(Pulled(), schedule=ramp)[0], trained(AddedByHand(), schedule=ramp)[0])
    assert not same_bits(trained(Pulled())[0], trained(Method())[0])


@pytest.mark.parametrize("method", [Pulled(), SRSTE(0.25), AddedByHand()])
def test_a_term_added_before_clipping_is_not_added_again(method: Method) -> None:
    """Whether it is fused with the merge or not."""
    model = mlp()
    optimizer = SGD(model.parameters(), lr=0.5)
    with Sparsifier(select(model, "2:4"), method) as sparsifier:
        weight = sparsifier.weights[0]
        dense, hidden = master(weight), weight.hidden.clone()
        weight.param.grad = torch.zeros_like(weight.param)
        sparsifier.regularize(optimizer)
        optimizer.step()
    torch.testing.assert_close(master(weight), dense - 0.5 * 0.25 * hidden)


# -- SR-STE and STE -----------------------------------------------------------------------------------


def test_ste_is_sr_ste_without_decay() -> None:
    """STE is the case lambda = 0, bit for bit."""
    assert same_bits(trained(STE())[0], trained(SRSTE(decay=0.0))[0])


def test_decay_changes_the_run() -> None:
    """The decay that STE lacks is really there in SR-STE."""
    assert not same_bits(trained(STE())[0], trained(SRSTE(decay=2e-4))[0])


@pytest.mark.parametrize("decay", [-1e-4, float("nan"), float("inf")])
def test_senseless_decay_is_refused(decay: float) -> None:
    """Bad input gets a ValueError that names the cause (promise 7)."""
    with pytest.raises(ValueError, match=f"decay.*{decay}"):
        SRSTE(decay)


def test_unknown_placement_is_refused() -> None:
    """Bad input gets a ValueError that names the cause (promise 7)."""
    with pytest.raises(ValueError, match="'weight'"):
        SRSTE(placement="weight")  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [SGD, Adam])
def test_decoupled_decay_shrinks_hidden_by_lr_times_decay(make: Callable[..., Optimizer]) -> None:
    """No optimizer normalises the decoupled decay: without data gradients hidden shrinks by exactly lr * decay."""
    model = mlp()
    with Sparsifier(select(model, "2:4"), SRSTE(0.5, "decoupled")) as sparsifier:
        weight = sparsifier.weights[0]
        hidden = weight.hidden.clone()
        decay_step(model, make(model.parameters(), lr=0.25))
    assert torch.equal(raw(weight.hidden), raw(hidden * (1 - 0.25 * 0.5)))


@pytest.mark.parametrize("placement", ["gradient", "decoupled"])
def test_decay_leaves_kept_weights_alone(placement: Any) -> None:
    """Only what is hidden decays."""
    model = mlp()
    with Sparsifier(select(model, "2:4"), SRSTE(0.5, placement)):
        before = model[0].weight.detach().clone()
        decay_step(model, SGD(model.parameters(), lr=0.25))
    assert torch.equal(raw(model[0].weight), raw(before))


@pytest.mark.parametrize("placement", ["gradient", "decoupled"])
def test_ramp_weakens_the_decay(placement: Any) -> None:
    """In the middle of a ramp of 4 steps, after 2, either placement works at half strength."""
    model = mlp()
    optimizer = SGD(model.parameters(), lr=0.25)
    with Sparsifier(select(model, "2:4"), SRSTE(0.5, placement), Schedule(ramp=4)) as sparsifier:
        weight = sparsifier.weights[0]
        masked = ~weight.mask.unpack()
        for _ in range(2):
            decay_step(model, optimizer)
        before = weight.hidden[masked]
        decay_step(model, optimizer)
    torch.testing.assert_close(weight.hidden[masked], before * (1 - 0.25 * 0.5 / 2))


class ThreeClosureCalls(SGD):
    """Evaluates its closure three times and only then moves, as line searches do."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        assert closure is not None
        with torch.enable_grad():
            losses = [closure() for _ in range(3)]
        super().step()
        return losses[0]


@pytest.mark.parametrize("placement", ["gradient", "decoupled"])
def test_decay_counts_once_however_often_a_closure_runs(placement: Any) -> None:
    """Lambda is added once per optimizer step, also where the step evaluates the loss several times."""
    model = mlp()
    optimizer = ThreeClosureCalls(model.parameters(), lr=0.25)

    def closure() -> float:
        for param in model.parameters():
            param.grad = torch.zeros_like(param)
        return 0.0

    with Sparsifier(select(model, "2:4"), SRSTE(0.5, placement)) as sparsifier:
        weight = sparsifier.weights[0]
        hidden = weight.hidden.clone()
        optimizer.step(closure)
    torch.testing.assert_close(weight.hidden, hidden * (1 - 0.25 * 0.5))


# -- frozen masks -------------------------------------------------------------------------------------


def test_frozen_is_masked_training() -> None:
    """ASP: mask weights and gradients by the first mask, then train; bit for bit, with momentum and weight decay."""
    model, _ = trained(Frozen())
    plain = mlp()
    masks = {p: nm_mask_by_hand(p, 2, 4) for p in (plain[0].weight, plain[2].weight)}
    optimizer = SGD(plain.parameters(), lr=0.3, momentum=0.9, weight_decay=1e-2)
    with torch.no_grad():
        for weight, mask in masks.items():
            weight.copy_(torch.where(mask, weight, 0.0))
    for step in range(6):
        optimizer.zero_grad()
        loss_of(plain, step).backward()
        for weight, mask in masks.items():
            weight.grad = torch.where(mask, weight.grad, 0.0)
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), plain.parameters()))


def test_a_frozen_mask_never_moves() -> None:
    """The first mask is the last, whatever the schedule's refresh says."""
    first = nm_mask_by_hand(mlp()[0].weight, 2, 4)
    _, sparsifier = trained(Frozen(), steps=10)
    assert torch.equal(sparsifier.weights[0].mask.unpack(), first)


def test_a_frozen_mask_is_chosen_when_the_schedule_starts() -> None:
    """Dense training before ``start`` decides which weights stay."""
    _, early = trained(Frozen(), steps=8)
    _, late = trained(Frozen(), steps=8, schedule=Schedule(start=5))
    assert early.weights[0].mask.distance(late.weights[0].mask) > 0


def test_frozen_masks_gradients() -> None:
    """Masked entries get no gradient, so that no optimizer state builds up for them."""
    model, sparsifier = trained(Frozen())
    assert (model[0].weight.grad[~sparsifier.weights[0].mask.unpack()] == 0).all()


def test_frozen_keeps_nothing_hidden() -> None:
    """What a frozen mask removes is gone and takes no memory."""
    assert [w.hidden for w in trained(Frozen())[1].weights] == [None, None]


# -- S-STE ----------------------------------------------------------------------------------------------


def s_ste_by_hand(weight: Tensor, n: int, m: int) -> tuple[Tensor, float]:
    """Soft-threshold each group of a row at its (m-n)-th smallest magnitude, in plain loops; then beta."""
    soft = []
    for group in weight.detach().double().reshape(-1, m).tolist():
        threshold = sorted(abs(v) for v in group)[m - n - 1] if m > n else 0.0
        soft.append([max(abs(v) - threshold, 0.0) * (1 if v > 0 else -1) for v in group])
    projected = torch.tensor(soft, dtype=torch.float64).reshape(weight.shape)
    beta = (weight.detach().double() * projected).sum() / projected.square().sum()
    return projected * beta, float(beta)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 7), (4, 4), (4, 8)])
def test_s_ste_projects_by_its_formula(n: int, m: int) -> None:
    """``sparse = beta * sign(w) * max(|w| - t, 0)``, beta the least-squares scale."""
    layer = nn.Linear(4 * m, 6)
    expected, beta = s_ste_by_hand(layer.weight, n, m)
    [weight] = Sparsifier(select(layer, NM(n, m)), SSTE()).weights
    torch.testing.assert_close(layer.weight.detach(), expected.float())
    assert float(weight.method.beta) == pytest.approx(beta)


def test_s_ste_thresholds_convolutions_along_channels() -> None:
    """Groups of a convolution run along its input channels at a fixed tap."""
    conv = nn.Conv2d(8, 3, 2)
    by_tap, _ = s_ste_by_hand(conv.weight.detach().movedim(1, -1).contiguous(), 2, 4)
    Sparsifier(select(conv, "2:4"), SSTE())
    torch.testing.assert_close(conv.weight.detach(), by_tap.movedim(-1, 1).float())


def test_beta_of_a_gaussian() -> None:
    """On Gaussian weights 2:4 gives beta 1.484."""
    layer = nn.Linear(512, 512)
    nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(0))
    [weight] = Sparsifier(select(layer, "2:4"), SSTE()).weights
    assert float(weight.method.beta) == pytest.approx(1.484, abs=0.005)


def test_beta_stays_as_it_was_found() -> None:
    """Beta belongs to the weights at the start and does not follow training."""
    _, beta = s_ste_by_hand(mlp()[0].weight, 2, 4)
    _, sparsifier = trained(SSTE())
    assert float(sparsifier.weights[0].method.beta) == pytest.approx(beta)


def test_s_ste_trains_the_dense_weight_straight_through() -> None:
    """The gradient at the sparse weight moves the dense one, which comes through every merge bit for bit."""
    model = mlp()
    dense = model[0].weight.detach().clone()
    optimizer = SGD(model.parameters(), lr=0.3)
    with Sparsifier(select(model, "2:4"), SSTE()) as sparsifier:
        weight = sparsifier.weights[0]
        for step in range(5):
            assert torch.equal(raw(weight.hidden), raw(dense))
            optimizer.zero_grad()
            loss_of(model, step).backward()
            dense.add_(weight.param.grad, alpha=-0.3)
            optimizer.step()


def test_s_ste_keeps_the_pattern() -> None:
    """Outside the optimizer step the weight satisfies its pattern (promise 1)."""
    model = mlp()
    optimizer = SGD(model.parameters(), lr=0.3)
    with Sparsifier(select(model, "2:4"), SSTE(), Schedule(refresh=3)):
        for step in range(7):
            one_step(model, optimizer, step)
            assert most_kept(model[0].weight, 4) <= 2


def test_s_ste_of_equal_magnitudes_is_finite() -> None:
    """Equal magnitudes project to 0, for which every beta is as good."""
    layer = nn.Linear(8, 4)
    nn.init.ones_(layer.weight)
    [weight] = Sparsifier(select(layer, "2:4"), SSTE()).weights
    assert float(weight.method.beta) == 1.0
    assert not layer.weight.any()


class Everything(Pattern):
    """A pattern that is not N:M."""

    density = 1.0

    def __str__(self) -> str:
        return "everything"

    def why_not(
        self, shape: Sequence[int], *, dim: int = 1, span: int | None = None, rows: int | None = None
    ) -> str | None:
        return None

    def _mask(self, weight: Tensor, dim: int) -> Tensor:
        raise AssertionError("never reached")

    def violations(self, weight: Tensor, *, dim: int = 1) -> int:
        return 0

    def log_diversity(self, shape: Sequence[int], *, dim: int = 1, exact: bool = True) -> float:
        return 0.0


def test_s_ste_refuses_a_pattern_without_groups() -> None:
    """A method that cannot train a pattern says so, by the pattern's name (promise 7)."""
    with pytest.raises(ValueError, match=r"S-STE.*everything"):
        Sparsifier(select(nn.Linear(8, 4), Everything()), SSTE())


# -- names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), [("sr_ste", SRSTE), ("ste", STE), ("frozen", Frozen), ("s_ste", SSTE)])
def test_methods_by_name(name: str, kind: type[Method]) -> None:
    """Every shipped method has a name."""
    assert type(named_method(name)) is kind


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    """Bad input gets a ValueError that names the cause and the choices (promise 7)."""
    with pytest.raises(ValueError, match=r"'asp'.*sr_ste, ste, frozen, s_ste"):
        named_method("asp")


# -- failures -----------------------------------------------------------------------------------------------


class OutOfMemory(SRSTE):
    """Breaks off before the first update, as running out of memory there would."""

    def regularize(self, grad: Tensor, hidden: Tensor | None, mask: PackedMask, update: Update) -> None:
        raise RuntimeError("out of memory")


def test_a_method_that_fails_loses_nothing() -> None:
    """An exception before the hidden part has returned to the weight must not overwrite it."""
    model = mlp()
    sparsifier = Sparsifier(select(model, "2:4"), OutOfMemory())
    before = [master(w) for w in sparsifier.weights]
    with pytest.raises(RuntimeError, match="out of memory"), sparsifier:
        one_step(model, SGD(model.parameters(), lr=0.3))
    assert all(torch.equal(raw(master(w)), raw(dense)) for w, dense in zip(sparsifier.weights, before))


def test_a_step_that_broke_off_takes_no_decay_from_the_next() -> None:
    """Decoupled decay is once per step, also after a step that an exception ended."""
    model = mlp()
    optimizer = SGD(model.parameters(), lr=0.25)

    def fails() -> float:
        for param in model.parameters():
            param.grad = torch.zeros_like(param)
        return 0.0

    with Sparsifier(select(model, "2:4"), SRSTE(0.5, "decoupled")) as sparsifier:
        weight = sparsifier.weights[0]
        sparsifier._before_step(optimizer, (optimizer, fails), {})[0][1]()  # a step that never comes back
        sparsifier.restore()
        hidden = weight.hidden.clone()
        optimizer.step()
    torch.testing.assert_close(weight.hidden, hidden * (1 - 0.25 * 0.5))
