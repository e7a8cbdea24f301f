"""Whole models, layer by layer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric

from lightning_nm import select
from lightning_nm.cli.digits import Digits
from lightning_nm.conversion import adaprune, one_shot
from tests.conversion.networks import LAYERS, QUICK, batches, mlp, obeys, values


def test_it_gives_back_most_of_the_accuracy_that_masking_lost() -> None:
    """At 1:8 on real digits, with published settings and unlabelled training images, over three seeds."""
    data = Digits(50)
    data.setup("fit")
    images, labels = (torch.cat(pair) for pair in zip(data.val.tensors, data.test.tensors, strict=True))

    def accuracy(model: nn.Module) -> float:
        return float((model(images).argmax(1) == labels).float().mean())

    scores: list[tuple[float, float, float]] = []
    for seed in range(3):
        model = mlp(64, 96, 96, 10, seed=seed)
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
        for _ in range(12):
            for x, y in data.train_dataloader():
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
        masked = copy.deepcopy(model)
        one_shot(select(masked, "1:8"))
        dense = accuracy(model)
        adaprune(model, select(model, "1:8"), data.train_dataloader(), progress=False)
        scores.append((dense, accuracy(masked), accuracy(model)))
    dense, masked, fitted = torch.tensor(scores).mean(0).tolist()
    assert dense - masked > 0.2
    assert fitted - masked > 0.5 * (dense - masked)


@pytest.mark.parametrize("layer", LAYERS)
def test_any_layer_is_fitted(layer: str) -> None:
    """Its outputs come nearer to the dense ones, its weights obey exactly, and nothing but its biases moved beside."""
    make, shape = LAYERS[layer]
    torch.manual_seed(0)
    model = make()
    before, selection = values(model), select(model, "2:4")
    conversion = adaprune(model, selection, batches(shape), **QUICK)
    assert obeys(selection)
    for weight in conversion.weights:
        assert weight.error < weight.masked_error, weight
        assert torch.equal(
            model.state_dict()[weight.name] != 0, weight.pattern.mask(before[weight.name], dim=weight.dim)
        )
    free = {weight.name for weight in conversion.weights} | {name for name in before if before[name].dim() == 1}
    assert all(torch.equal(now, before[name]) for name, now in model.state_dict().items() if name not in free)


def test_weights_that_were_not_selected_stay() -> None:
    """Ignored ones of the same module, too."""
    torch.manual_seed(0)
    model, data = nn.LSTM(8, 8), batches((5, 4, 8))
    before = values(model)
    adaprune(model, select(model, "2:4", ignore=["weight_hh_l0"]), data, **QUICK)
    assert torch.equal(model.weight_hh_l0, before["weight_hh_l0"])
    assert not torch.equal(model.bias_hh_l0, before["bias_hh_l0"])


def test_a_whole_transformer() -> None:
    """Attention as one unit; the report says where its output projection was fitted."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    selection = select(model, "2:4")
    conversion = adaprune(model, selection, batches((4, 6, 16)), **QUICK)
    assert obeys(selection)
    assert all(weight.error < weight.masked_error for weight in conversion.weights)
    remarks = {weight.name: weight.remark for weight in conversion.weights if weight.remark}
    out = {f"layers.{i}.self_attn.out_proj.weight": f"fitted at the output of layers.{i}.self_attn" for i in range(2)}
    assert remarks == out


def test_every_call_of_a_layer_counts() -> None:
    """Inputs of the second call alone decide what the first cannot tell."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 4, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            self.layer(x * 0)
            return self.layer(x)

    torch.manual_seed(0)
    model = Twice()
    (weight,) = adaprune(model, select(model, "2:4"), batches((64, 8)), **QUICK).weights
    assert weight.error < 0.9 * weight.masked_error


def test_a_shared_weight_serves_all_its_layers() -> None:
    """One fit to the outputs of both; both biases are free."""
    torch.manual_seed(0)
    model = mlp(8, 8, 8)
    model[2].weight = model[0].weight
    (weight,) = adaprune(model, select(model, "2:4"), batches((64, 8)), **QUICK).weights
    assert model[2].weight is model[0].weight
    assert (weight.error < weight.masked_error, weight.remark) == (True, "fitted at the output of 0 + 2")


def test_later_layers_make_good_the_errors_of_earlier_ones() -> None:
    """On the converted network's inputs; the network's own output is nearer to the dense one than on dense inputs."""
    errors = {}
    for inputs in ("dense", "converted"):
        model, data = mlp(16, 32, 32, 8), batches((64, 16))
        dense = model(data[0]).detach()
        adaprune(model, select(model, "1:4"), data, inputs=inputs, iterations=300, lr=3e-3, progress=False)
        errors[inputs] = float((model(data[0]) - dense).detach().square().mean())
    assert errors["converted"] < 0.9 * errors["dense"]


def test_on_dense_inputs_layers_are_independent() -> None:
    """As published: what becomes of one layer does not depend on the others."""
    alone, together, data = mlp(16, 16, 8), mlp(16, 16, 8), batches((64, 16))
    adaprune(alone, select(alone, "2:4", ignore=["0"]), data, inputs="dense", **QUICK)
    adaprune(together, select(together, "2:4"), data, inputs="dense", **QUICK)
    assert torch.equal(alone[2].weight, together[2].weight)


def test_a_network_that_calls_its_layers_otherwise_when_sparse() -> None:
    """As a router does: these layers are fitted on dense inputs, and the report says so."""

    class Router(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.expert = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            few = self.gate.weight.count_nonzero() < 64
            return self.gate(x) + self.expert(x[:5] if few else x).mean()

    model = Router()
    remarks = [w.remark for w in adaprune(model, select(model, "2:4"), batches((8, 8)), **QUICK).weights]
    assert remarks == ["", "fitted on the dense network's inputs, as the converted one calls it otherwise"]


def test_layers_without_calls_are_only_masked() -> None:
    """Nothing runs through them, or nothing depends on them; both are said."""

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(8, 4), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    for call, remark in (
        (lambda model, batch: model(batch), "no output depends on it: masked only"),
        (lambda model, batch: model.used(batch), "its module was never called on the calibration data: masked only"),
    ):
        model = Heads().requires_grad_(False)
        dense, selection = model.unused.weight.detach().clone(), select(model, "2:4")
        conversion = adaprune(model, selection, batches((8, 8)), call=call, **QUICK)
        assert [weight.remark for weight in conversion.weights] == ["", remark]
        assert torch.equal(model.unused.weight, torch.where(selection.weights[1].pattern.mask(dense), dense, 0.0))


def test_a_weight_that_is_read_by_what_is_above_it() -> None:
    """Not in every call: it is fitted by those that it has a part in."""

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.read.weight.t() if len(x) == 64 else x

    torch.manual_seed(0)
    model = Reader()
    data = [torch.ones(2, 8), torch.ones(3, 8), *batches((64, 8), 1)]
    for seed in range(3):
        copied = copy.deepcopy(model)
        (weight,) = adaprune(copied, select(copied, "2:4"), data, seed=seed, **QUICK).weights
        assert (weight.error < weight.masked_error, weight.remark) == (True, "fitted at the output of the model")


def test_an_unstructured_sparse_model() -> None:
    """Zeros that the mask keeps may take part."""
    torch.manual_seed(0)
    model = nn.Linear(16, 8)
    with torch.no_grad():
        model.weight[torch.rand(8, 16) > 0.4] = 0.0
    selection = select(model, "2:4")
    (weight,) = adaprune(model, selection, batches((64, 16)), **QUICK).weights
    assert obeys(selection)
    assert weight.error < weight.masked_error


def test_masks_by_scores() -> None:
    """The fit keeps them."""
    model, score = nn.Linear(16, 8), torch.randn(8, 16)
    selection = select(model, "2:4")
    adaprune(model, selection, batches((64, 16)), scores={"weight": score}, **QUICK)
    assert torch.equal(model.weight != 0, selection.weights[0].pattern.mask(score))


def test_the_bar_names_layer_and_error(capsys: pytest.CaptureFixture[str]) -> None:
    """One bar for the whole conversion; none if not wanted."""
    for progress in (True, False):
        model = mlp(8, 8, 4)
        adaprune(model, select(model, "2:4"), batches((16, 8)), iterations=60, progress=progress)
        shown = capsys.readouterr().err
        assert ("120/120" in shown, "2:" in shown, "error" in shown) == (progress,) * 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
@pytest.mark.parametrize("layer", LAYERS)
def test_on_a_gpu(layer: str) -> None:
    """Batches follow the model there; recurrent layers are fitted although cuDNN has no backward in evaluation mode."""
    make, shape = LAYERS[layer]
    model = make().cuda()
    selection = select(model, "2:4")
    conversion = adaprune(model, selection, batches(shape), **QUICK)
    assert obeys(selection)
    assert all(weight.error < weight.masked_error for weight in conversion.weights)


def test_a_model_that_runs_under_autocast() -> None:
    """Calls are made again in the precision in which they were recorded."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 8)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.b(self.a(x).relu())

    torch.manual_seed(0)
    model = Mixed()
    conversion = adaprune(model, select(model, "2:4"), batches((8, 16)), iterations=50, progress=False)
    for weight in conversion.weights:
        assert weight.error is not None
        assert weight.masked_error is not None
        assert weight.error < weight.masked_error, weight.remark


def test_metrics_inside_the_model_do_not_count_the_calibration_data() -> None:
    """Whoever evaluates next starts from what they held."""

    class Measured(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.mean = nn.Linear(16, 8), MeanMetric()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            out = self.fc(x)
            self.mean.update(out.mean())
            self.calls += 1
            return out

    model = Measured()
    model.mean.update(3.0)
    adaprune(model, select(model, "2:4"), batches((8, 16)), iterations=5, progress=False)
    assert float(model.mean.compute()) == 3.0
    assert model.mean.update_count == 1
    assert float(model.calls) == 0


@pytest.mark.parametrize("wrong", [{"lr": float("nan")}, {"bias_lr": float("inf")}, {"iterations": 2.5}])
def test_settings_that_are_no_numbers(wrong: dict[str, float]) -> None:
    """Refused before anything is masked."""
    model = mlp(16, 8, seed=0)
    with pytest.raises(ValueError, match="must be positive"):
        adaprune(model, select(model, "2:4"), batches((8, 16)), progress=False, **wrong)  # type: ignore[arg-type]
    assert bool(model[0].weight.all())
