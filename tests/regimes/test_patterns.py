"""Every pattern trains by the same callback, is checkpointed, resumed and judged."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lightning_nm import NMSparsityCallback, Schedule
from lightning_nm.cli.report import examine, load_checkpoint
from lightning_nm.patterns import Pattern, parse
from lightning_nm.training import select
from tests.helpers import SELECTED, net, same_bits, trainer
from tests.oracles import nm_mask_by_hand
from tests.regimes.matrix import supported

EVERY = ["1:4", "2:4T", "2:4T,at_most", "2:4T,entropic", "2:4V4", "1x4@0.75", "unstructured@0.9", "filter@0.5"]


class Obeys(L.Callback):
    """Every forward, in training and validation, meets weights that obey."""

    def __init__(self, pattern: Pattern) -> None:
        self.pattern = pattern
        self.forwards = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.handle = pl_module.register_forward_pre_hook(self._look)

    def _look(self, module: nn.Module, args: Any) -> None:
        self.forwards += 1
        for name in SELECTED:
            weight = module.get_parameter(name)
            assert self.pattern.violations(weight) == 0, name
            assert weight.count_nonzero() > 0, name


def masks(callback: NMSparsityCallback) -> dict[str, Tensor]:
    assert callback.sparsifier is not None
    return {w.name: w.mask.unpack() for w in callback.sparsifier.weights if w.mask is not None}


@supported("Patterns", "N:M", "transposable N:M", "vector-wise N:M", "1xN blocks", "unstructured", "filters")
@pytest.mark.parametrize("method", ["sr_ste", "frozen"])
@pytest.mark.parametrize("written", EVERY)
def test_every_forward_obeys(tmp_path, written, method):
    """Under SR-STE, where masks move, and under the published recipe of 1xN: one mask, then fine-tuning."""
    pattern, model = parse(written), net()
    watch, callback = Obeys(pattern), NMSparsityCallback(written, method=method, schedule=Schedule(refresh=2))
    first = {name: pattern.mask(model.get_parameter(name)) for name in SELECTED}
    trainer(tmp_path, callback, watch, max_epochs=4).fit(model)
    assert watch.forwards > 24
    moved = any(not torch.equal(mask, first[name]) for name, mask in masks(callback).items())
    assert moved == (method == "sr_ste")


@supported("Patterns", "N:M", "transposable N:M", "vector-wise N:M", "1xN blocks", "unstructured", "filters")
@pytest.mark.parametrize("written", EVERY)
def test_checkpoints_are_judged_and_resumed(tmp_path, written):
    """`lightning-nm report` needs no pattern; a resumed run equals the uninterrupted one bit for bit."""
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    whole, resumed = net(), net(seed=1)
    for model, resume in ((whole, None), (resumed, tmp_path / "epoch=0.ckpt")):
        callback = NMSparsityCallback(written, schedule=Schedule(refresh=4))
        beside = [] if resume else [keep]
        run = trainer(tmp_path, callback, *beside, enable_checkpointing=not resume)
        run.fit(model, ckpt_path=resume, weights_only=True if resume else None)
    assert all(same_bits(a, b) for a, b in zip(whole.parameters(), resumed.parameters()))
    verdicts = [v for v in examine(load_checkpoint(tmp_path / "epoch=1.ckpt"), None) if v.obeys is not None]
    assert {v.name for v in verdicts} == set(SELECTED)
    assert all(v.obeys and v.pattern == str(parse(written)) for v in verdicts)


@supported("Patterns", "a pattern of its own for each layer")
def test_patterns_side_by_side(tmp_path):
    """By overrides, in one fit."""
    callback = NMSparsityCallback("2:4", overrides={"conv": "1x4@0.5", "net.2": "2:4T"})
    model = net()
    trainer(tmp_path, callback).fit(model)
    assert parse("1x4@0.5").violations(model.conv.weight) == 0
    assert parse("2:4T").violations(model.net[2].weight) == 0
    assert torch.equal(model.net[0].weight != 0, nm_mask_by_hand(model.net[0].weight, 2, 4))


def test_blocks_stay_within_the_groups_of_a_convolution():
    """8 outputs in 4 groups of 2: a block of 4 would span two GEMMs."""
    model = nn.Sequential(nn.Conv2d(16, 8, 3, groups=4))
    [skipped] = [s for s in select(model, "1x4@0.5").skipped if s.name == "0.weight"]
    assert skipped.reason == "the 2 outputs of one GEMM are not a multiple of 4"
    assert [w.name for w in select(model, "1x2@0.5").weights] == ["0.weight"]
