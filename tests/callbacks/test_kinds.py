"""Classes told by name."""

from __future__ import annotations

import lightning.pytorch.callbacks as ours
import pytorch_lightning.callbacks as theirs

from lightning_nm.callbacks.kinds import is_kind


def test_both_lightnings_are_known():
    """A class and what derives from it, of either package; nothing else."""
    for package in (ours, theirs):
        assert is_kind(package.EMAWeightAveraging(), "WeightAveraging")
        assert is_kind(package.EMAWeightAveraging(), "ModelPruning", "EMAWeightAveraging")
        assert not is_kind(package.EMAWeightAveraging(), "StochasticWeightAveraging")
