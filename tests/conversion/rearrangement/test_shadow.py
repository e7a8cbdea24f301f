"""The float64 copy: how it runs a model."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_nm.conversion.rearrangement.shadow import Case, Shadow

EVALUATION, TRAINING = Case(False, False), Case(True, True)


class Casts(nn.Module):
    """Casts down in every way."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.constant = torch.rand(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x).float() @ self.constant
        x = x.to(torch.bfloat16) + torch.zeros(4) + torch.ones(4, dtype=torch.float16)
        with torch.autocast("cpu", torch.bfloat16):
            x = F.linear(x, self.fc.weight)
        return x.type(torch.float32).sum(dtype=torch.float32)


def test_everything_runs_in_float64() -> None:
    """Whatever a model casts to: otherwise sums in another order would differ by more than a wrong channel."""
    model, x = Casts(), torch.randn(2, 4)
    (found,) = Shadow(model, x).run(EVALUATION)
    weight, bias = model.fc.weight.double(), model.fc.bias.double()
    expected = ((F.linear(x.double(), weight, bias) @ model.constant.double() + 1) @ weight.T).sum()
    assert found.dtype == torch.float64
    assert float(abs(found - expected)) < 1e-12


def test_nothing_is_dropped_at_random() -> None:
    """Dropout of every kind keeps everything, so that training runs can be compared."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Dropout1d(0.5), nn.AlphaDropout(0.0))
    shadow = Shadow(model, torch.randn(2, 3, 4))
    training, again = shadow.run(Case(True, False)), shadow.run(Case(True, False))
    assert torch.equal(training[0], again[0])
    assert torch.allclose(training[0], shadow.run(EVALUATION)[0])


def test_runs_do_not_leave_traces_in_later_ones() -> None:
    """Statistics that a training run updates, noise that a random run adds."""
    shadow = Shadow(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), torch.randn(5, 4))
    first = shadow.run(EVALUATION)
    shadow.run(TRAINING)
    assert torch.equal(first[0], shadow.run(EVALUATION)[0])


def test_random_values_tell_channels_apart() -> None:
    """Zeros and ones of a fresh model become different numbers; variances stay positive."""
    norm = nn.BatchNorm2d(8)
    nn.init.zeros_(norm.weight)
    shadow = Shadow(nn.Sequential(nn.Conv2d(3, 8, 1), norm), torch.randn(2, 3, 4, 4))
    shadow.run(Case(False, True))
    assert len(shadow.held["1.weight"].unique()) == 8
    assert len(shadow.held["1.running_mean"].unique()) == 8
    assert (shadow.held["1.running_var"] > 0).all()


@dataclass
class Output:
    logits: Tensor
    extra: dict[str, list[Tensor]]
    name: str = "x"


class Structured(nn.Module):
    def forward(self, x: Tensor) -> tuple[Output, None]:
        return Output(x, {"more": [x + 1]}), None


def test_outputs_are_found_wherever_they_are() -> None:
    """In containers and in plain objects."""
    assert len(Shadow(Structured(), torch.randn(2)).run(EVALUATION)) == 2


def test_fused_and_compiled_layers_run_as_their_parts() -> None:
    """An encoder layer's fast path and a compiled model give what their plain operations give."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = torch.randn(2, 5, 8)
    fast = torch.backends.mha.get_fastpath_enabled()
    (found,) = Shadow(torch.compile(layer), x).run(EVALUATION)
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert torch.allclose(found.float(), layer(x), atol=1e-5)


def test_expanded_buffers() -> None:
    """Constants that cannot be written to are left as they are."""
    model = nn.Linear(4, 4)
    model.register_buffer("ones", torch.ones(1, dtype=torch.long).expand(4))
    shadow = Shadow(model, torch.randn(2, 4))
    shadow.run(Case(False, True))
    assert torch.equal(shadow.held["ones"], torch.ones(4, dtype=torch.long))


def test_models_that_cannot_be_copied() -> None:
    model = nn.Linear(2, 2)
    model.result = model.weight * 2
    with pytest.raises(ValueError, match="cannot be copied"):
        Shadow(model, torch.randn(1, 2))


def test_copies_that_are_no_copies() -> None:
    """Whatever ran on them would change the model."""

    class Itself(nn.Linear):
        def __deepcopy__(self, memo: object) -> Itself:
            return self

    with pytest.raises(ValueError, match=r"cannot be copied: 0\.weight is shared with the copy"):
        Shadow(nn.Sequential(Itself(2, 2)), torch.randn(1, 2))


def test_masks_stay_masks() -> None:
    """Noise on infinities, or of their scale, would make every output NaN, which equals NaN."""
    model = nn.Linear(4, 4)
    least = torch.finfo(torch.float32).min
    model.register_buffer("infinite", torch.full((4, 4), -torch.inf).triu(1))
    model.register_buffer("least", torch.full((4, 4), least).triu(1))
    shadow = Shadow(model, torch.randn(2, 4))
    shadow.run(Case(False, True))
    for name, value in (("infinite", -torch.inf), ("least", least)):
        mask = shadow.held[name]
        assert (mask[torch.ones(4, 4).triu(1) > 0] == value).all()
        assert (mask.tril().abs() < 10).all()


def test_what_hooks_write_to_the_model_is_undone() -> None:
    """They are not copied with it, so the buffers that they reach are its own; written to or assigned anew."""
    model = nn.Sequential(nn.Linear(4, 4))
    model.register_buffer("seen", torch.zeros(4))
    model.register_buffer("last", torch.zeros(4))
    last = model.last

    def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
        model.seen += 1
        model.last = output.detach().mean(0)

    model[0].register_forward_hook(hook)
    Shadow(model, torch.randn(2, 4)).run(EVALUATION)
    assert torch.equal(model.seen, torch.zeros(4))
    assert model.last is last
