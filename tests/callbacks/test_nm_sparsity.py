"""The callback in real Trainer runs."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_nm import NMSparsityCallback
from lightning_nm.patterns import NM
from lightning_nm.training import SRSTE, Schedule
from tests.helpers import SELECTED, Net, net, same_bits, trainer

PATTERN = NM(2, 4)


def sparsity(pattern: Any = "2:4", **kwargs: Any) -> NMSparsityCallback:
    return NMSparsityCallback(pattern, report=False, **kwargs)


def assert_sparse(model: nn.Module, pattern: NM = PATTERN) -> None:
    for name, dim in SELECTED.items():
        weight = model.get_parameter(name)
        assert pattern.violations(weight, dim=dim) == 0, name


class Watch(L.Callback):
    """Asserts that every forward, in training and validation, meets sparse weights."""

    def __init__(self) -> None:
        self.forwards = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pl_module.register_forward_pre_hook(self._look)

    def _look(self, module: nn.Module, args: Any) -> None:
        self.forwards += 1
        assert_sparse(module)


def test_every_forward_and_the_result_are_sparse(tmp_path):
    """Promise 1: outside the optimizer step every selected weight satisfies its pattern exactly."""
    watch, model = Watch(), net()
    callback = sparsity()
    trainer(tmp_path, callback, watch).fit(model)
    assert watch.forwards > 12
    assert_sparse(model)
    assert callback.sparsifier is not None
    assert callback.sparsifier.steps == 12
    assert {w.name for w in callback.sparsifier.weights} == set(SELECTED)


@pytest.mark.parametrize("method", ["sr_ste", "ste", "frozen", "s_ste"])
def test_each_method_trains(tmp_path, method):
    """Every named method gives a sparse network that has learned something."""
    model, watch = net(), Watch()
    before = model.training_step(next(iter(model.train_dataloader()))).item()
    trainer(tmp_path, sparsity(method=method), watch, max_epochs=6).fit(model)
    assert_sparse(model)
    assert model.training_step(next(iter(model.train_dataloader()))).item() < before


def test_callback_equals_the_plain_loop(tmp_path):
    """The callback adds nothing to what the core does in a plain PyTorch loop."""
    from lightning_nm import Sparsifier, select

    model, plain = net(), net()
    trainer(tmp_path, sparsity()).fit(model)
    optimizer = plain.configure_optimizers()
    with Sparsifier(select(plain, "2:4")):
        for _ in range(2):
            for batch in plain.train_dataloader():
                optimizer.zero_grad()
                plain.training_step(batch).backward()
                optimizer.step()
    for mine, theirs in zip(model.parameters(), plain.parameters()):
        assert same_bits(mine, theirs)


def test_hooks_are_gone_after_fit(tmp_path):
    """Training the model on without the callback trains it dense, and touches no hook of ours."""
    from torch.optim import optimizer as hooks

    before = len(hooks._global_optimizer_pre_hooks)
    trainer(tmp_path, sparsity()).fit(net())
    assert len(hooks._global_optimizer_pre_hooks) == before


# -- checkpoints --------------------------------------------------------------------------------------


def saved(folder, model, callback, **kwargs):
    """Fit with a checkpoint after every step; returns {step: path}."""
    keep = ModelCheckpoint(folder / "steps", filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer(folder, callback, keep, enable_checkpointing=True, **kwargs).fit(model)
    return {int(p.stem.split("=")[1]): p for p in (folder / "steps").glob("*.ckpt")}


def test_checkpoint_is_the_dense_models_and_sparse(tmp_path):
    """Promise 3: keys, shapes and dtypes are the dense model's; the weights in it are sparse; the rest is ours."""
    files = saved(tmp_path, net(), sparsity())
    checkpoint = torch.load(files[7], weights_only=True)
    dense = net().state_dict()
    assert list(checkpoint["state_dict"]) == list(dense)
    for name, tensor in checkpoint["state_dict"].items():
        assert (tensor.shape, tensor.dtype) == (dense[name].shape, dense[name].dtype)
    plain = net()
    plain.load_state_dict(checkpoint["state_dict"])
    assert_sparse(plain)
    state = checkpoint["callbacks"]["NMSparsityCallback"]
    assert set(state["weights"]) == set(SELECTED)
    _only_builtins(state)


def _only_builtins(value: Any) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            assert type(key) is str
            _only_builtins(inner)
    elif isinstance(value, list):
        for inner in value:
            _only_builtins(inner)
    else:
        assert value is None or type(value) in (int, float, bool, str, Tensor), type(value)


@pytest.mark.parametrize(
    ("method", "schedule"),
    [
        ("sr_ste", Schedule()),
        ("sr_ste", Schedule(refresh=4, ramp=5)),
        ("sr_ste", Schedule(start=5)),
        ("sr_ste", Schedule(freeze=4)),
        ("s_ste", Schedule()),
        ("frozen", Schedule(start=2)),
        ("sr_ste", Schedule(dense_from=6)),
    ],
)
@pytest.mark.parametrize("at", [3, 6, 7])
def test_resume_equals_the_uninterrupted_run(tmp_path, method, schedule, at):
    """Promise 2: a run resumed mid-epoch or between epochs continues bit for bit, SAD history included."""

    class SameBatch(Net):
        # Lightning starts a plain loader anew when it resumes mid-epoch; so let every batch be the same
        def train_dataloader(self) -> DataLoader[Any]:
            x, y = next(iter(super().train_dataloader()))
            return DataLoader(TensorDataset(x.repeat(6, 1, 1, 1), y.repeat(6, 1)), batch_size=8)

    torch.manual_seed(0)
    whole, one = SameBatch(), sparsity(method=method, schedule=schedule, log_every_n_steps=1)
    files = saved(tmp_path, whole, one)
    resumed, two = SameBatch(), sparsity(method=method, schedule=schedule, log_every_n_steps=1)
    trainer(tmp_path, two).fit(resumed, ckpt_path=files[at], weights_only=True)
    for (name, mine), theirs in zip(resumed.named_parameters(), whole.parameters()):
        assert same_bits(mine, theirs), name
    assert one.sparsifier is not None
    assert two.sparsifier is not None
    for mine, theirs in zip(two.sparsifier.weights, one.sparsifier.weights):
        assert mine.steps == theirs.steps
        assert (mine.hidden is None) == (theirs.hidden is None)
        if mine.hidden is not None and theirs.hidden is not None:
            assert same_bits(mine.hidden, theirs.hidden)
    assert two.topology.history == one.topology.history


def test_dense_checkpoint_can_be_the_start(tmp_path):
    """Weights of a dense run count as the dense master: the first mask is theirs, and they come back whole."""
    dense = net(seed=3)
    run = trainer(tmp_path, max_epochs=1)
    run.fit(dense)
    run.save_checkpoint(tmp_path / "dense.ckpt")
    weight = dense.net[0].weight.detach().clone()
    seen = {}

    class Look(L.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if not seen:
                held = next(w for w in callback.sparsifier.weights if w.name == "net.0.weight")
                seen.update(sparse=held.param.detach().clone(), hidden=held.hidden.clone())

    callback, model = sparsity(), net()
    trainer(tmp_path, callback, Look()).fit(model, ckpt_path=tmp_path / "dense.ckpt")
    assert same_bits(seen["sparse"] + seen["hidden"], weight)
    assert_sparse(model)


def test_sparse_weights_without_our_state_can_be_the_start(tmp_path):
    """A deployed (sparse) state dict loaded in the module's own setup keeps its topology."""
    trained = net()
    trainer(tmp_path, sparsity()).fit(trained)
    weights = trained.state_dict()

    class Warm(Net):
        def setup(self, stage: str) -> None:
            self.load_state_dict(weights)

    torch.manual_seed(5)
    model, callback = Warm(), sparsity(log_every_n_steps=0)
    seen = {}

    class Look(L.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            seen.update({name: p.detach().clone() for name, p in pl_module.named_parameters()})

    trainer(tmp_path, callback, Look()).fit(model)
    for name in SELECTED:
        assert same_bits(seen[name], weights[name]) or torch.equal(seen[name], weights[name])


def test_saving_after_fit_keeps_the_hidden_part(tmp_path):
    """trainer.save_checkpoint after fit saves what a resume needs."""
    callback = sparsity()
    run = trainer(tmp_path, callback)
    run.fit(net())
    run.save_checkpoint(tmp_path / "end.ckpt")
    state = torch.load(tmp_path / "end.ckpt", weights_only=True)["callbacks"]["NMSparsityCallback"]
    assert all(w["hidden"].count_nonzero() > 0 for w in state["weights"].values())


def test_second_fit_goes_on(tmp_path):
    """Two fits of one epoch with one callback are one fit of two."""
    once, twice, callback = net(), net(), sparsity()
    optimizers: list[torch.optim.Optimizer] = []

    def one_optimizer(model: Net) -> Any:
        if not optimizers:
            optimizers.append(torch.optim.SGD(model.parameters(), 0.1, momentum=0.9))
        return optimizers[0]

    once.configure_optimizers = lambda: torch.optim.SGD(once.parameters(), 0.1, momentum=0.9)  # type: ignore[method-assign]
    twice.configure_optimizers = lambda: one_optimizer(twice)  # type: ignore[method-assign]
    trainer(tmp_path, sparsity()).fit(once)
    for _ in range(2):
        trainer(tmp_path, callback, max_epochs=1).fit(twice)
    for mine, theirs in zip(twice.parameters(), once.parameters()):
        assert same_bits(mine, theirs)


# -- what setup cannot see yet -------------------------------------------------------------------------


def test_layers_made_later_are_picked_up(tmp_path):
    """Layers of LightningModule.setup and configure_model are sparse before the first forward."""

    class Late(Net):
        def __init__(self) -> None:
            super().__init__()
            del self.conv, self.net

        def setup(self, stage: str) -> None:
            self.conv = nn.Conv2d(4, 8, 3)

        def configure_model(self) -> None:
            if not hasattr(self, "net"):
                self.net = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))

    watch, model = Watch(), Late()
    trainer(tmp_path, sparsity(), watch).fit(model)
    assert watch.forwards > 12
    assert_sparse(model)


@pytest.mark.parametrize("sanity", [0, 1])
def test_lazy_layers_are_sparse_from_their_first_step_on(tmp_path, sanity):
    """They have no weights before the first forward: with a sanity check that is before training, else its first."""

    class Lazy(Net):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.net = nn.LazyConv2d(8, 3), nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.LazyLinear(4))

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if self.global_step or sanity:
                assert_sparse(self)

    model, callback = Lazy(), sparsity()
    trainer(tmp_path, callback, num_sanity_val_steps=sanity).fit(model)
    assert_sparse(model)
    assert callback.sparsifier is not None
    assert [weight.steps for weight in callback.sparsifier.weights] == [12 if sanity else 11] * 3


def test_true_half_precision_keeps_the_hidden_part(tmp_path):
    """bf16-true converts the weights after setup; masks and hidden part follow."""
    callback, model, watch = sparsity(), net(), Watch()
    trainer(tmp_path, callback, watch, precision="bf16-true", max_epochs=1).fit(model)
    assert_sparse(model)
    assert callback.sparsifier is not None
    for weight in callback.sparsifier.weights:
        assert weight.param.dtype == torch.bfloat16
        assert weight.hidden is not None
        assert weight.hidden.dtype == torch.bfloat16
        assert weight.hidden.count_nonzero() > 0.3 * weight.hidden.numel()


# -- errors ----------------------------------------------------------------------------------------------


def test_nothing_selected_is_an_error(tmp_path):
    """M dividing nothing: an error that lists each layer with its reason."""
    with pytest.raises(ValueError, match=r"no weight was selected(.|\n)*conv\.weight \[8, 4, 3, 3\].*multiple of 7"):
        trainer(tmp_path, sparsity("2:7")).fit(net())


def test_misspelt_glob_is_an_error(tmp_path):
    """A glob that matches nothing would leave a layer sparse in silence."""
    with pytest.raises(ValueError, match=r"match no parameter: \['haed'\]"):
        trainer(tmp_path, sparsity(ignore=["haed"])).fit(net())


def test_nan_weight_is_an_error_that_names_the_layer(tmp_path):
    """A diverged run stops with the layer's name, and leaves sparse weights behind."""
    model = net()
    with torch.no_grad():
        model.net[0].weight[3, 5] = float("nan")
    with pytest.raises(ValueError, match=r"net\.0\.weight \[16, 32\]: 1 NaN"):
        trainer(tmp_path, sparsity()).fit(model)


def test_checkpoint_of_another_model_is_an_error(tmp_path):
    """The selection of the checkpoint and of this run differ: both are named."""
    files = saved(tmp_path, net(), sparsity())
    with pytest.raises(ValueError, match=r"in the checkpoint but not selected: \['conv.weight'\]"):
        trainer(tmp_path, sparsity(ignore=["conv"])).fit(net(), ckpt_path=files[3])
    with pytest.raises(ValueError, match=r"weight: the checkpoint was trained with pattern 2:4, this run asks for 1:4"):
        trainer(tmp_path, sparsity("1:4")).fit(net(), ckpt_path=files[3])


def test_missing_checkpoint_is_an_error(tmp_path):
    """Lightning's own error, and the weights stay as they were."""
    with pytest.raises(FileNotFoundError):
        trainer(tmp_path, sparsity()).fit(net(), ckpt_path=tmp_path / "nowhere.ckpt")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"pattern": "2x4"}, "not a sparsity pattern"),
        ({"pattern": "5:4"}, "0 < N <= M"),
        ({"method": "asp"}, "unknown method 'asp'"),
        ({"decay": -1.0}, "decay"),
        ({"method": SRSTE(), "decay": 1.0}, "applies to method='sr_ste' only"),
        ({"method": "ste", "decay": 1.0}, "applies to method='sr_ste' only"),
        ({"overrides": {"*": "9:4"}}, "0 < N <= M"),
    ],
)
def test_bad_arguments_are_errors_at_once(kwargs, message):
    """Nothing is trained before a wrong argument is told."""
    with pytest.raises(ValueError, match=message):
        NMSparsityCallback(**kwargs)


def test_unknown_picture_is_an_error(tmp_path):
    """The message lists the layers that could be drawn."""
    with pytest.raises(ValueError, match=r"'fc' is not a selected weight; they are conv\.weight"):
        trainer(tmp_path, sparsity(picture="fc")).fit(net())


def test_exception_in_the_optimizer_leaves_sparse_weights(tmp_path):
    """An exception mid-step leaves sparse weights behind, and no hooks."""

    class Breaks(torch.optim.SGD):
        steps = 0

        def step(self, closure: Any = None) -> Any:
            loss = super().step(closure)
            self.steps += 1
            if self.steps == 4:
                raise RuntimeError("broken")
            return loss

    model = net()
    model.configure_optimizers = lambda: Breaks(model.parameters(), 0.1)  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="broken"):
        trainer(tmp_path, sparsity()).fit(model)
    assert_sparse(model)


# -- the rest of Lightning -------------------------------------------------------------------------------


def test_dense_tail_is_said(tmp_path):
    """Weights handed over dense on purpose are announced, and hold the whole master weight."""
    model = net()
    with pytest.warns(UserWarning, match=r"dense_from=8 is reached"):
        trainer(tmp_path, sparsity(schedule=Schedule(dense_from=8))).fit(model)
    assert all(model.get_parameter(name).count_nonzero() == model.get_parameter(name).numel() for name in SELECTED)


def test_accumulation_counts_optimizer_steps(tmp_path):
    """Four micro-batches are one step of the schedule."""
    callback, model = sparsity(), net()
    trainer(tmp_path, callback, accumulate_grad_batches=3).fit(model)
    assert callback.sparsifier is not None
    assert callback.sparsifier.steps == 4
    assert_sparse(model)


def test_validation_without_fit_changes_nothing(tmp_path):
    """trainer.validate on a dense model leaves it dense."""
    model = net()
    before = model.net[0].weight.detach().clone()
    trainer(tmp_path, sparsity()).validate(model, verbose=False)
    assert torch.equal(model.net[0].weight, before)


def test_report_is_printed(tmp_path, capsys):
    """Every skipped weight has a line with its reason."""
    model = net()
    model.conv = nn.Conv2d(4, 8, 3, groups=4)
    trainer(tmp_path, NMSparsityCallback("2:4", overrides={"net.2": None}), fast_dev_run=True).fit(model)
    out = capsys.readouterr().out
    assert "net.0.weight" in out
    assert "256 / 512" in out
    assert "left dense by the override 'net.2'" in out
    assert "depthwise: every output sums over a single input channel" in out
    assert "3 vectors" in out


def test_another_model_starts_anew(tmp_path):
    """One callback on a second model: its schedule, masks and history are not the first one's."""
    callback, first, second = sparsity(schedule=Schedule(start=3)), net(), net(seed=1)
    trainer(tmp_path, callback).fit(first)
    trainer(tmp_path, callback, max_epochs=1).fit(second)
    fresh, alone = sparsity(schedule=Schedule(start=3)), net(seed=1)
    trainer(tmp_path, fresh, max_epochs=1).fit(alone)
    assert all(same_bits(mine, theirs) for mine, theirs in zip(second.parameters(), alone.parameters()))
    assert callback.topology.history == fresh.topology.history


def test_picture_of_a_weight_that_ends_dense_is_left_out(tmp_path):
    """A dense tail ends the run without a mask to draw, and without an error."""
    from lightning.pytorch.loggers import TensorBoardLogger

    callback = sparsity(schedule=Schedule(dense_from=8), picture="net.0.weight")
    with pytest.warns(UserWarning, match="dense_from"):
        trainer(tmp_path, callback, logger=TensorBoardLogger(tmp_path)).fit(net())


def test_another_model_leaves_the_first_one_sparse(tmp_path):
    """A second model with other layer names takes nothing back into the finished first one."""

    class Other(Net):
        def __init__(self) -> None:
            super().__init__()
            self.body = self.net
            del self.net

        def forward(self, x: Tensor) -> Tensor:
            return self.body(self.conv(x).flatten(1))

    callback, first = sparsity(), net()
    trainer(tmp_path, callback).fit(first)
    trainer(tmp_path, callback).fit(Other())
    assert_sparse(first)


def test_saved_after_testing_an_older_checkpoint_can_be_resumed(tmp_path):
    """Weights loaded by trainer.test count as dense ones in what is saved next."""
    model, callback = net(), sparsity()
    files = saved(tmp_path, model, callback)
    run = trainer(tmp_path, callback, max_epochs=3)
    model.test_step = model.validation_step
    run.test(model, model.val_dataloader(), ckpt_path=files[5], verbose=False)
    run.save_checkpoint(tmp_path / "older.ckpt")
    resumed = net()
    trainer(tmp_path, sparsity(), max_epochs=3).fit(resumed, ckpt_path=tmp_path / "older.ckpt")
    assert_sparse(resumed)


def test_resuming_with_another_schedule_is_said(tmp_path):
    """Weights that the new schedule wants dense are dense, hidden part included, and a warning says so."""
    files = saved(tmp_path, net(), sparsity())
    model = net()
    with pytest.warns(UserWarning, match="trained with the schedule"):
        trainer(tmp_path, sparsity(schedule=Schedule(start=100))).fit(model, ckpt_path=files[5])
    assert all(model.get_parameter(n).count_nonzero() == model.get_parameter(n).numel() for n in SELECTED)


def test_measures_although_steps_pass_the_multiple(tmp_path):
    """Three optimizer steps in a batch still give one measurement for every ten steps."""

    class Thrice(Net):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: list[Tensor]) -> None:
            for _ in range(3):
                self.optimizers().zero_grad()
                self.manual_backward(super().training_step(batch))
                self.optimizers().step()

        def validation_step(self, batch: list[Tensor]) -> None:
            pass

    callback = sparsity(log_every_n_steps=10)
    trainer(tmp_path, callback).fit(Thrice())
    assert [row[0] for row in callback.topology.history] == [12, 18, 21, 30, 36]  # 18 and 36 end epochs


def test_layers_replaced_while_training_are_picked_up(tmp_path):
    """A head put in at an epoch's start is sparse before its first forward."""

    class Replaces(Net):
        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 1:
                self.net[2] = nn.Linear(16, 4)
                self.trainer.optimizers[0].add_param_group({"params": self.net[2].parameters()})

    watch, model, callback = Watch(), Replaces(), sparsity()
    trainer(tmp_path, callback, watch).fit(model)
    assert_sparse(model)
    # what was measured of the other layers stays
    assert [row[0] for row in callback.topology.history] == list(range(1, 13))


def test_transposable_masks_train(tmp_path):
    """Every forward is 2:4 along inputs and outputs; masks move every fourth step; a resumed run is the same."""
    pattern = NM(2, 4, transposable=True)

    class Transposed(Watch):
        def _look(self, module: nn.Module, args: Any) -> None:
            self.forwards += 1
            assert_sparse(module, pattern)

    model, callback, watch = net(), sparsity("2:4T", schedule=Schedule(refresh=4), log_every_n_steps=1), Transposed()
    trainer(tmp_path, callback, watch).fit(model)
    assert watch.forwards > 12
    moved = [row[0] for row in callback.topology.history if row[1] > 0]
    assert moved
    assert all(step % 4 == 0 for step in moved)
    report = {w.name: str(w.pattern) for w in callback.sparsifier.weights}
    assert report == dict.fromkeys(SELECTED, "2:4T")


def test_a_lazy_layer_that_never_runs_hides_no_typo(tmp_path):
    """Globs are held against it for an epoch only, and the weights are not looked through at every batch."""

    class Unused(Net):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.LazyLinear(4)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.net.parameters(), 0.1)

    trainer(tmp_path, sparsity()).fit(Unused())
    with pytest.raises(ValueError, match=r"match no parameter: \['typo'\]"):
        trainer(tmp_path, sparsity(ignore=["typo"])).fit(Unused())
