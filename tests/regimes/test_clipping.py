"""Gradient clipping, and where the decay is added: after it (lambda is exact) or before it (as published)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_nm import Sparsifier, select
from lightning_nm.training import SRSTE, STE
from tests.helpers import same_bits
from tests.oracles import nm_mask_by_hand
from tests.regimes.matrix import supported
from tests.regimes.silent import DECAY, LR, Silent, measured, silent

CLIP = 0.05
ALGORITHMS = ["norm", "value"]


def clip(parameters: Any, algorithm: str) -> None:
    if algorithm == "norm":
        nn.utils.clip_grad_norm_(parameters, CLIP)
    else:
        nn.utils.clip_grad_value_(parameters, CLIP)


def by_hand(algorithm: str, before: bool) -> nn.Module:
    """The dense weights kept in a plain loop, mask and decay written out; no hooks, no Sparsifier."""
    model = silent()
    masters = {name: p.detach().clone() for name, p in model.named_parameters()}
    for (x,) in model.train_dataloader():
        hidden = {}
        for name, param in model.named_parameters():
            dense = masters[name]
            if dense.dim() == 2:
                mask = nm_mask_by_hand(dense, 2, 4)
                hidden[name] = torch.where(mask, 0.0, dense)
                dense = torch.where(mask, dense, 0.0)
            param.data.copy_(dense)
        model.zero_grad()
        (model.net(x) - 1).square().mean().backward()
        parameters = dict(model.named_parameters())
        for clipping in (not before, before):
            if clipping:
                clip(model.parameters(), algorithm)
            else:
                for name, part in hidden.items():
                    parameters[name].grad += DECAY * part
        for name, param in parameters.items():
            masters[name] -= LR * param.grad
    return masters


@supported("Clipping", "by norm", "by value", "the decay before clipping (`decay_before_clipping=True`)")
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_clipping_and_decay_in_either_order(tmp_path, algorithm, before):
    """Six steps equal the algorithm written out by hand, with the term added where it was asked for."""
    model = silent()
    run = measured(tmp_path, model, before=before, gradient_clip_val=CLIP, gradient_clip_algorithm=algorithm)
    expected = by_hand(algorithm, before)
    sparsifier = run.sparsity.sparsifier
    assert sparsifier is not None
    for weight in sparsifier.weights:
        torch.testing.assert_close(weight.param.detach() + weight.hidden, expected[weight.name], atol=1e-6, rtol=0)
    other = by_hand(algorithm, not before)["net.0.weight"]
    assert not torch.allclose(other, expected["net.0.weight"], atol=1e-3), "the order makes no difference here"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_lambda_is_exact_by_default(tmp_path, algorithm):
    """However hard the data gradient is clipped, the decay is lambda."""
    run = measured(tmp_path, silent(), gradient_clip_val=CLIP, gradient_clip_algorithm=algorithm)
    for before, after in zip(run.hidden, run.hidden[1:]):
        assert same_bits(after, before * (1 - LR * DECAY))


@pytest.mark.parametrize("method", [STE(), SRSTE(0.1, placement="decoupled")])
def test_a_decay_that_is_no_gradient_is_not_clipped(tmp_path, method):
    """Where nothing is added to the gradient both orders are one."""
    runs = [
        measured(tmp_path, silent(), method=method, before=before, gradient_clip_val=CLIP) for before in (False, True)
    ]
    assert same_bits(runs[0].hidden[-1], runs[1].hidden[-1])
    assert not same_bits(runs[0].hidden[-1], runs[0].hidden[0]) or isinstance(method, STE)


class Manual(Silent):
    """Clips by itself; with ``before`` it asks for the decay first."""

    before = False

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward((self.net(batch[0]) - 1).square().mean())
        if self.before:
            self.trainer.callbacks[0].sparsifier.regularize(optimizer.optimizer)
        self.clip_gradients(optimizer, CLIP, "norm")
        optimizer.step()


@supported("Clipping", "manual optimization (`sparsifier.regularize(optimizer)` before clipping)")
@pytest.mark.parametrize("before", [False, True])
def test_manual_optimization_clips_where_it_says(tmp_path, before):
    """The term is added once: before the user's own clipping if asked for, else after it."""
    torch.manual_seed(0)
    model = Manual()
    model.before = before
    run = measured(tmp_path, model, before=before)
    expected = by_hand("norm", before)
    sparsifier = run.sparsity.sparsifier
    assert sparsifier is not None
    for weight in sparsifier.weights:
        torch.testing.assert_close(weight.param.detach() + weight.hidden, expected[weight.name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("before", [False, True])
def test_a_plain_loop_clips_where_it_says(before):
    """``Sparsifier.regularize`` is the whole of it, in any loop."""
    model = silent()
    optimizer = model.configure_optimizers()
    with Sparsifier(select(model, "2:4"), SRSTE(DECAY)) as sparsifier:
        for (x,) in model.train_dataloader():
            optimizer.zero_grad()
            (model.net(x) - 1).square().mean().backward()
            if before:
                sparsifier.regularize(optimizer)
            clip(model.parameters(), "norm")
            optimizer.step()
    expected = by_hand("norm", before)
    for weight in sparsifier.weights:
        torch.testing.assert_close(weight.param.detach() + weight.hidden, expected[weight.name], atol=1e-6, rtol=0)
