"""Fits on sparse products: exact masks, checkpoints and resumption as without, and the same network up to rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lightning_nm import NMSparsityCallback
from lightning_nm.strategies import NMSparseStrategy
from tests.helpers import trainer
from tests.regimes.matrix import supported
from tests.strategies.runs import Watched, assert_plain, assert_same_weights


class Deep(Watched):
    """Its second linear layer hands a gradient on."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
        self.losses: list[float] = []
        self.backends: set[tuple[str, str]] = set()

    def training_step(self, batch: list[Tensor]) -> Tensor:
        loss = super().training_step(batch)
        self.losses.append(float(loss.detach()))
        training = getattr(self.trainer.strategy, "sparse_training", None)
        if training is not None:
            self.backends |= {(row.name, row.backend) for row in training.rows()}
        return loss


LAYERS = {"net.0.weight", "net.2.weight", "net.4.weight"}


def deep() -> Deep:
    torch.manual_seed(0)
    return Deep()


def fit(folder: Path, model: Deep, *, on: bool = True, pattern: str = "2:4T", ckpt: Any = None, **kwargs: Any) -> Any:
    strategy = NMSparseStrategy(backend="cpu", report=False, sparse_training=on)
    callbacks = [NMSparsityCallback(pattern, report=False), *kwargs.pop("callbacks", [])]
    run = trainer(folder, *callbacks, strategy=strategy, **kwargs)
    run.fit(model, ckpt_path=ckpt)
    return run


@supported("Sparse training", "`NMSparseStrategy(sparse_training=True)`: the dense run up to rounding")
@pytest.mark.parametrize("pattern", ["2:4T", "2:4"])
def test_a_fit(tmp_path: Path, pattern: str) -> None:
    """The loss falls, the weights obey and equal those of dense products to rounding; the report is there."""
    model, twin = deep(), deep()
    run = fit(tmp_path, model, pattern=pattern, max_epochs=4)
    fit(tmp_path, twin, on=False, pattern=pattern, max_epochs=4)
    assert {(name, "cpu") for name in LAYERS} <= model.backends
    assert not twin.backends
    assert sum(model.losses[-6:]) < sum(model.losses[:6])
    for weight in run.callbacks[0].sparsifier.weights:
        assert weight.pattern.violations(weight.param) == 0
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
    assert_plain(model)
    assert run.strategy.sparse_training is None


@supported("Sparse training", "off: bit for bit Lightning's own")
def test_off(tmp_path: Path) -> None:
    """As without the strategy."""
    model, twin = deep(), deep()
    fit(tmp_path, model, on=False)
    trainer(tmp_path, NMSparsityCallback("2:4T", report=False)).fit(twin)
    assert_same_weights(model, twin)


@supported("Sparse training", "checkpoints, and runs resumed from them, bit for bit")
def test_resumed(tmp_path: Path) -> None:
    """From the first epoch's checkpoint, with the same backends, the run goes on as the whole one did."""
    whole, resumed = deep(), deep()
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    fit(tmp_path, whole, callbacks=[keep], enable_checkpointing=True, max_epochs=2)
    fit(tmp_path, resumed, ckpt=tmp_path / "epoch=0.ckpt", max_epochs=2)
    assert resumed.losses
    assert_same_weights(resumed, whole)


@supported("Sparse training", "`accumulate_grad_batches`, bf16-mixed, manual optimization")
@pytest.mark.parametrize(
    "settings",
    [{"accumulate_grad_batches": 3}, {"precision": "bf16-mixed"}, {"manual": True}],
    ids=str,
)
def test_regimes(tmp_path: Path, settings: dict[str, Any]) -> None:
    """By the kernels, to the precision of the dense run."""

    class Manual(Deep):
        automatic_optimization = False

        def training_step(self, batch: list[Tensor]) -> None:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch))
            optimizer.step()

        def validation_step(self, batch: list[Tensor]) -> None:
            pass

    manual = settings.pop("manual", False)
    models = []
    for on in (True, False):
        torch.manual_seed(0)
        models.append((Manual if manual else Deep)())
        fit(tmp_path, models[-1], on=on, **settings)
    assert {(name, "cpu") for name in LAYERS} <= models[0].backends
    half = "precision" in settings
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, other, atol=5e-2 if half else 1e-4, rtol=5e-2 if half else 1e-3)


def test_without_the_callback(tmp_path: Path) -> None:
    """There are no masks to train by: a clear error, not a dense run in silence."""
    with pytest.raises(ValueError, match="add it to the callbacks"):
        trainer(tmp_path, strategy=NMSparseStrategy(sparse_training=True)).fit(deep())


def test_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Once, at the end of the fit: what multiplied, forward and backward, and why not faster."""
    run = trainer(
        tmp_path,
        NMSparsityCallback("2:4T", report=False),
        strategy=NMSparseStrategy(sparse_training=True),
        max_epochs=1,
    )
    run.fit(deep())
    out = capsys.readouterr().out
    assert out.count("Sparse training: what ran where, and why") == 1
    assert "x's gradient, of [8, 16] float32" in out
    assert "convolutions are trained by dense products" in out


def test_an_exception(tmp_path: Path) -> None:
    """Leaves nothing active; the Trainer can go on."""

    class Fails(Deep):
        broken = True

        def training_step(self, batch: list[Tensor]) -> Tensor:
            loss = super().training_step(batch)
            if self.broken and len(self.losses) == 3:
                raise ValueError("broken")
            return loss

    torch.manual_seed(0)
    model = Fails()
    strategy = NMSparseStrategy(backend="cpu", report=False, sparse_training=True)
    run = trainer(tmp_path, NMSparsityCallback("2:4T", report=False), strategy=strategy)
    with pytest.raises(ValueError, match="broken"):
        run.fit(model)
    assert strategy.sparse_training is None
    assert type(model.net[0](torch.randn(2, 32)).grad_fn).__name__ == "AddmmBackward0"
    model.broken = False
    run.fit(model)
    assert not any(param.isnan().any() for param in model.parameters())
