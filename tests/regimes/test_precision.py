"""Every precision, with and without a loss scaler: lambda, skipped steps, sparse weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from tests.helpers import same_bits
from tests.regimes.matrix import supported
from tests.regimes.silent import DECAY, LR, measured, silent
from tests.regimes.watch import watched

TRUE = {"32-true": torch.float32, "64-true": torch.float64, "bf16-true": torch.bfloat16, "16-true": torch.float16}


def scaled() -> dict[str, Any]:
    """16-mixed as on a GPU, with a real gradient scaler."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler=scaler)]}


@supported("Precision", *[f'`precision="{name}"`' for name in (*TRUE, "bf16-mixed")])
@pytest.mark.parametrize("precision", [*TRUE, "bf16-mixed"])
def test_lambda_in_every_precision(tmp_path, precision):
    """A hidden weight without data gradient shrinks by 1 - lr * lambda at each step, exactly; weights stay sparse."""
    model = silent()
    with watched() as seen:
        run = measured(tmp_path, model, precision=precision)
    assert seen.forwards == 12
    assert run.steps == [0, 1, 2, 3, 4, 5, 6]
    assert model.net[0].weight.dtype == TRUE.get(precision, torch.float32)
    for before, after in zip(run.hidden, run.hidden[1:]):
        # halving is exact, but for the last digit of float16's subnormals
        digit = 1e-7 if precision == "16-true" else 0.0
        torch.testing.assert_close(after, before * (1 - LR * DECAY), rtol=0, atol=digit)


@supported("Precision", '`precision="16-mixed"` with a GradScaler', "fused optimizers that unscale by themselves")
@pytest.mark.parametrize("fused", [False, True])
def test_lambda_under_a_scaler(tmp_path, fused):
    """Loss scaling changes the decay no more than accumulation does."""
    with watched() as seen:
        run = measured(tmp_path, silent(fused=fused), **scaled())
    assert seen.forwards == 12
    assert run.steps[-1] == 6
    for before, after in zip(run.hidden, run.hidden[1:]):
        assert same_bits(after, before * (1 - LR * DECAY))


@supported("Precision", "steps that the scaler skips")
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_a_skipped_step_advances_nothing(tmp_path, fused, before):
    """After infinite gradients nothing has moved, been counted or decayed; the next step is a whole one."""
    run = measured(tmp_path, silent(fused=fused, infinite=2), before=before, **scaled())
    assert run.steps == [0, 1, 2, 2, 3, 4, 5]
    assert same_bits(run.hidden[3], run.hidden[2])
    assert same_bits(run.hidden[4], run.hidden[3] * (1 - LR * DECAY))
