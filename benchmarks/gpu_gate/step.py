"""What masks cost in the training step of a language model."""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor, nn

from gpu_gate.networks import LanguageModel
from gpu_gate.sections import Row, Task
from gpu_gate.sizes import Sizes
from gpu_gate.steps import Variant, autocast, optimizer_of, rows_of, take_steps
from lightning_nm.training import SRSTE, Sparsifier, select

READING = (
    "A step (forward, backward, AdamW fused) of a language model of 12 blocks (width 1024, SwiGLU of 2816, vocabulary "
    "of 50304), 8 x 1024 tokens, bfloat16 autocast, not compiled, every product dense: SR-STE with its masks against "
    "the dense step, in turn; medians (quartiles), ratios within a round. 'dense again' is the noise. 2:4 masks are "
    "made at each step, 2:4T ones at every 40th: that is in the means only."
)


def tasks(sizes: Sizes) -> list[Task]:
    return [Task(f"training step, {sizes.layers} layers", partial(_rows, sizes))]


def _rows(sizes: Sizes, until: float) -> list[Row]:
    torch.manual_seed(0)
    with torch.device(sizes.device):
        first = LanguageModel(sizes.vocabulary, sizes.layers, sizes.model)
        sequences, length = sizes.model_tokens
        tokens = torch.randint(0, sizes.vocabulary, (sequences, length + 1))
    variants = {
        name: _variant(copy.deepcopy(first), pattern, tokens)
        for name, pattern in (("dense", None), ("dense again", None), ("2:4", "2:4"), ("2:4T", "2:4T"))
    }
    times = take_steps(variants, sizes.rounds, sizes.device, until)
    return rows_of(times, {name: variant.fault() for name, variant in variants.items()}, {})


def _variant(model: nn.Module, pattern: str | None, tokens: Tensor) -> Variant:
    def loss() -> Tensor:
        with autocast(tokens.device.type):
            out: Tensor = model(tokens)
            return out

    sparsifier = None if pattern is None else Sparsifier(select(model, pattern, ignore=["head"]), SRSTE(2e-4))
    return Variant(model, optimizer_of(model), loss, sparsifier)
