"""Training a wide block on sparse products, against the dense step."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gpu_gate.networks import Block, random
from gpu_gate.sections import Row, Task, far
from gpu_gate.sizes import Sizes
from gpu_gate.steps import Variant, autocast, optimizer_of, rows_of, take_steps
from lightning_nm.sparse import SparseTraining
from lightning_nm.sparse.choice import Choice
from lightning_nm.training import SRSTE, Sparsifier, select

READING = (
    "A step (forward, backward, AdamW fused) of a block in Llama's shape (hidden 4096, 32 heads, SwiGLU of 14336) on "
    "4 x 2048 tokens, bfloat16 autocast, not compiled, in turn; medians (quartiles), ratios within a round. 'sparse "
    "products': lightning_nm.sparse.SparseTraining, of 2:4T weights forward and for the gradient of each input, of 2:4 "
    "ones forward only. 'products': how many times as fast the products are that may be sparse, packing included, by "
    "the measurement that chose their backends; 'predicted': 3 / (2 / products + 1), of a step that is nothing but "
    "products (3 / (1 / products + 2) where the forward one alone is sparse). Gradients are held against float32 dense."
)


def tasks(sizes: Sizes) -> list[Task]:
    return [Task("2:4 transposable training", partial(_rows, sizes))]


def _rows(sizes: Sizes, until: float) -> list[Row]:
    torch.manual_seed(0)
    with torch.device(sizes.device):
        first = Block(sizes.training)
    # an inner block's: its gradient is asked for
    x = random((*sizes.training_tokens, sizes.training.hidden), sizes.device).requires_grad_()
    variants: dict[str, Variant] = {}
    sparse: dict[str, SparseTraining] = {}
    faults: dict[str, str] = {}
    plan = (
        ("dense", None, False),
        ("dense again", None, False),
        ("2:4T, dense products", "2:4T", False),
        ("2:4T, sparse products", "2:4T", True),
        ("2:4, sparse products", "2:4", True),
    )
    for name, pattern, packed in plan:
        model = copy.deepcopy(first)
        sparsifier = None if pattern is None else Sparsifier(select(model, pattern), SRSTE(2e-4))
        within: AbstractContextManager[Any] = nullcontext()
        if packed and sparsifier is not None:
            within = sparse[name] = SparseTraining(sparsifier)
        faults[name] = _fault(model, x, within) if packed else ""
        variants[name] = Variant(model, optimizer_of(model), partial(_loss, model, x, within), sparsifier)
    products = {name: _products(training, 1 if name.startswith("2:4,") else 2) for name, training in sparse.items()}
    times = take_steps(variants, sizes.rounds, sizes.device, until)
    faults = {name: faults[name] or variant.fault() for name, variant in variants.items()}
    return rows_of(times, faults, products)


def _loss(model: nn.Module, x: Tensor, within: AbstractContextManager[Any]) -> Tensor:
    with within, autocast(x.device.type):
        out = model(x)
    return out.float().square().mean()  # type: ignore[no-any-return]


def _gradients(model: nn.Module, x: Tensor, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [x, *model.parameters()]))


def _fault(model: nn.Module, x: Tensor, within: AbstractContextManager[Any]) -> str:
    """Which gradients are further off than bfloat16 allows."""
    exact = _gradients(model, x, model(x).square().mean())
    dense, mine = (_gradients(model, x, _loss(model, x, how)) for how in (nullcontext(), within))
    names = ["x", *[name for name, _ in model.named_parameters()]]
    said = {name: far(*three) for name, *three in zip(names, mine, dense, exact)}
    return "; ".join(f"gradient of {name}: {fault}" for name, fault in said.items() if fault)


def _products(training: SparseTraining, sparse: int) -> dict[str, Any]:
    """How many times as fast the products are that may be sparse, and what that predicts of a step.

    Args:
        sparse: of a layer's three products so many may be.
    """
    choices = [choice for trained in training.choices.values() for choice in trained]
    backends = sorted({choice.backend for choice in choices})
    reasons = sorted({choice.reason for choice in choices})
    found: dict[str, Any] = {"by": backends, "reasons": reasons}
    if (speedup := _speedup(choices)) is not None:
        found |= {"products": speedup, "predicted": 3 / (sparse / speedup + 3 - sparse)}
    return found


def _speedup(choices: Sequence[Choice]) -> float | None:
    measured = [choice.times for choice in choices if choice.times]
    chosen = sum(choice.times[choice.backend] for choice in choices if choice.times)
    return sum(times["dense"] for times in measured) / chosen if measured else None
