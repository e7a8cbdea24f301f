"""The demonstration's data and model."""

from __future__ import annotations

import torch

from lightning_nm.cli.digits import Digits, DigitsMLP


def test_splits_are_disjoint_complete_and_the_same_for_every_seed():
    """1,797 images once each, whatever the global seed."""
    parts = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        data = Digits()
        data.setup("fit")
        parts.append(torch.cat([split.tensors[0] for split in (data.train, data.val, data.test)]))
        assert [len(split) for split in (data.train, data.val, data.test)] == [1078, 359, 360]
    assert torch.equal(parts[0], parts[1])
    assert len(parts[0]) == 1797
    assert float(parts[0].max()) == 1.0


def test_model_shapes():
    """Pixels [B, 64] to logits [B, 10]."""
    assert DigitsMLP(hidden=16)(torch.zeros(3, 64)).shape == (3, 10)
