"""What is saved of a converted model."""

from __future__ import annotations

import torch
from torch import nn

from lightning_nm import select
from lightning_nm.conversion import one_shot
from lightning_nm.conversion.checkpoint import converted_checkpoint


def test_weights_keep_keys_shapes_and_dtypes() -> None:
    """Also where the model computes in another dtype than the file has, and where a key is no tensor."""
    dense = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)).bfloat16()
    state = {**dense.state_dict(), "_extra_state": "kept"}
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    model.load_state_dict(dense.state_dict())
    conversion = one_shot(select(model, "2:4"))
    saved = converted_checkpoint({"state_dict": state}, model, conversion)
    kinds = {key: (value.shape, value.dtype) for key, value in dense.state_dict().items()}
    assert {k: (v.shape, v.dtype) for k, v in saved["state_dict"].items() if k != "_extra_state"} == kinds
    assert saved["state_dict"]["_extra_state"] == "kept"
    assert torch.equal(saved["state_dict"]["0.weight"].float(), model[0].weight)
    assert saved["sparse_weights"] == {"0.weight": {"pattern": "2:4", "dim": 1}}


def test_the_states_of_the_run_are_dropped() -> None:
    """They belong to the dense weights; hyperparameters and what a user saved stay."""
    model = nn.Linear(4, 4)
    kept = {"state_dict": model.state_dict(), "hyper_parameters": {"lr": 1.0}, "epoch": 3, "mine": [1]}
    run = {"optimizer_states": [1], "lr_schedulers": [1], "loops": {}, "callbacks": {"a": 1}, "MixedPrecision": {}}
    saved = converted_checkpoint({**kept, **run}, model, one_shot(select(model, "2:4")))
    assert saved.keys() == kept.keys() | {"sparse_weights"}
    assert (saved["hyper_parameters"], saved["epoch"], saved["mine"]) == ({"lr": 1.0}, 3, [1])
