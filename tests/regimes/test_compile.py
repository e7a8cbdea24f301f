"""torch.compile of models before and after sparse training: no graph more, and the same sparse weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lightning_nm import select
from lightning_nm.cli.report import examine
from tests.helpers import SELECTED, Net, same_bits, trainer
from tests.regimes.graphs import Graphs, Run
from tests.regimes.matrix import supported
from tests.regimes.watch import sparsity

# checkpoints are resumed in another folder
pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")
AREA = "Compilation"


class Head(nn.Sequential):
    """Has a forward of its own: PyTorch compiles none of its own modules in place."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = layer(x)
        return x


class Compilable(Net):
    def __init__(self) -> None:
        super().__init__()
        self.net = Head(*self.net)

    def predict_step(self, batch: list[Tensor]) -> Tensor:
        return self(batch[0])


Way = Callable[[Compilable, Graphs], nn.Module]


def uncompiled(model: Compilable, graphs: Graphs) -> Compilable:
    return model


def whole(model: Compilable, graphs: Graphs) -> nn.Module:
    return torch.compile(model, backend=graphs)


def whole_in_place(model: Compilable, graphs: Graphs) -> Compilable:
    model.compile(backend=graphs)
    return model


def submodule(model: Compilable, graphs: Graphs) -> Compilable:
    model.net = torch.compile(model.net, backend=graphs)
    return model


def submodule_in_place(model: Compilable, graphs: Graphs) -> Compilable:
    model.net.compile(backend=graphs)
    return model


WAYS: dict[str, Way] = {
    "`torch.compile(model)`": whole,
    "`model.compile()`": whole_in_place,
    "`torch.compile(submodule)`": submodule,
    "`submodule.compile()`": submodule_in_place,
}


def fit(
    folder: Path, way: Way, *callbacks: Any, backend: str = "eager", ckpt_path: Path | None = None, **settings: Any
) -> Run:
    """Two epochs; a checkpoint of each is left in the folder."""
    torch.manual_seed(0)
    graphs, model = Graphs(backend), Compilable()
    keep = ModelCheckpoint(folder, "{epoch}", save_top_k=-1)
    run = trainer(folder, keep, *callbacks, enable_checkpointing=True, **settings)
    run.fit(way(model, graphs), ckpt_path=ckpt_path)
    return Run(model, [w for callback in callbacks for w in callback.sparsifier.weights], graphs)


@pytest.fixture(scope="module", params=WAYS)
def way(request):
    return WAYS[request.param]


@pytest.fixture(scope="module")
def folder(way, tmp_path_factory):
    """Where the compiled run leaves its checkpoints."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def compiled(way, folder):
    return fit(folder, way, sparsity())


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("plain")


@pytest.fixture(scope="module")
def plain(plain_folder):
    return fit(plain_folder, uncompiled, sparsity())


# -- compile, then fit --------------------------------------------------------------------------------


@supported(AREA, *WAYS)
def test_compiled_forwards_see_sparse_weights(compiled):
    """Promise 1: every run of a compiled graph, in training and validation, is given sparse weights."""
    compiled.assert_sparse()


@supported(AREA, *WAYS)
def test_the_callback_costs_no_graph_and_no_graph_break(way, compiled, tmp_path):
    """Graphs and graph breaks are counted: those of the dense run, so no step compiles anything again."""
    dense = fit(tmp_path, way)
    assert (compiled.graphs.compiled, compiled.breaks) == (dense.graphs.compiled, dense.breaks)


@supported(AREA, *WAYS)
def test_a_compiled_run_is_the_uncompiled_run(compiled, plain):
    """With a compiler that changes no arithmetic, weights and hidden parts agree bit for bit."""
    compiled.assert_is(plain)


@supported(AREA, "AOT autograd", "inductor")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_real_compilers_train_the_same_network(backend, plain, tmp_path):
    """Forward and backward traced ahead of time, and fused: sparse, and the same to float tolerance."""
    # one graph, for training, keeps this quick: each kernel is a run of the C++ compiler
    run = fit(tmp_path, submodule_in_place, sparsity(), backend=backend, limit_val_batches=0)
    run.assert_sparse()
    for mine, theirs in zip(run.model.parameters(), plain.model.parameters()):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


# -- after fit ----------------------------------------------------------------------------------------


@supported(AREA, "compiled after `fit`")
def test_a_trained_model_can_be_compiled(way, plain, tmp_path):
    """Predictions are the uncompiled model's, from sparse weights."""
    graphs, model, run = Graphs(), Compilable(), trainer(tmp_path)
    model.load_state_dict(plain.model.state_dict())
    data = model.val_dataloader()
    expected = run.predict(plain.model, data)
    for mine, theirs in zip(run.predict(way(model, graphs), data), expected):
        assert same_bits(mine, theirs)
    assert graphs.weights > 0
    assert graphs.violations == 0


@supported(AREA, "`predict` with the compiled model")
def test_a_model_compiled_before_fit_predicts_with_its_last_weights(compiled, plain, tmp_path):
    """No weight is baked into a graph while it trains."""
    run, data = trainer(tmp_path), Compilable().val_dataloader()
    for mine, theirs in zip(run.predict(compiled.model, data), run.predict(plain.model, data)):
        assert same_bits(mine, theirs)


# -- names and checkpoints ----------------------------------------------------------------------------


def renamed(checkpoint: Path, way: Way) -> Path:
    """PyTorch puts ``_orig_mod`` into the keys of a compiled submodule, and leaves it to the user to rename them."""
    model, loaded = Compilable(), torch.load(checkpoint, weights_only=True)
    way(model, Graphs())
    keys = {key.replace("_orig_mod.", ""): key for key in model.state_dict()}
    loaded["state_dict"] = {keys[key.replace("_orig_mod.", "")]: value for key, value in loaded["state_dict"].items()}
    torch.save(loaded, checkpoint.with_name("renamed.ckpt"))
    return checkpoint.with_name("renamed.ckpt")


@supported(AREA, *WAYS)
def test_an_uncompiled_model_goes_on_from_a_compiled_one(compiled, folder, plain, tmp_path):
    """Promise 2 across torch.compile: half a run compiled, half not, is the whole run bit for bit."""
    checkpoint = renamed(folder / "epoch=0.ckpt", uncompiled)
    fit(tmp_path, uncompiled, sparsity(), ckpt_path=checkpoint).assert_is(plain)


@supported(AREA, *WAYS)
def test_a_compiled_model_goes_on_from_an_uncompiled_one(way, plain_folder, plain, tmp_path):
    """And the other way round."""
    checkpoint = renamed(plain_folder / "epoch=0.ckpt", way)
    fit(tmp_path, way, sparsity(), ckpt_path=checkpoint).assert_is(plain)


@supported(AREA, *WAYS)
def test_names_are_those_of_the_uncompiled_model(compiled):
    """What our part of a checkpoint is filed under does not depend on what was compiled."""
    assert set(compiled.hidden) == set(SELECTED)


@supported(AREA, *WAYS)
def test_globs_are_those_of_the_uncompiled_model(way):
    """A glob that left a layer dense still does when the layer, or its parent, is compiled."""
    model = way(Compilable(), Graphs())
    chosen = select(model, "2:4", ignore=["net.0"], overrides={"net.2.weight": "1:4"}).require()
    assert [str(weight.pattern) for weight in chosen.weights] == ["2:4", "1:4"]


@supported(AREA, *WAYS)
def test_a_checkpoint_can_be_reported_on(compiled, folder):
    """`lightning-nm report` finds the weights that were trained sparse, whatever was compiled."""
    verdicts = examine(torch.load(folder / "epoch=1.ckpt", weights_only=True), None)
    assert [verdict.obeys for verdict in verdicts] == [True] * len(SELECTED)
