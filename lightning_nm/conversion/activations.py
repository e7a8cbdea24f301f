"""Scores that weigh each weight by the activations it meets."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from lightning_nm.conversion.calibration import Calibration, Call, evaluating
from lightning_nm.conversion.one_shot import Score
from lightning_nm.training import Selected, Selection

Squares = Tensor | str
"""Summed squares of the inputs that each weight meets, broadcastable to the weight, or why there are none."""


def activation_scores(
    model: nn.Module,
    selection: Selection,
    batches: Iterable[Any],
    *,
    call: Call | None = None,
    samples: int | None = None,
    seed: int = 0,
) -> dict[str, Score]:
    """``|W_ij| * ||X_j||_2`` (Wanda: Sun et al., ICLR 2024, eq. 1) from calibration data, for `one_shot`.

    ``X_j`` is the input feature that weight ij multiplies; of a convolution the whole input channel, at all
    positions. The model is run in evaluation mode and not changed.

    Args:
        model: the trained model.
        selection: its weights to score.
        batches: calibration data.
        call: gives the model a batch. None: a LightningModule by ``validation_step`` or ``predict_step``, others by
            ``model(batch)``, ``model(batch[0])`` or ``model(**batch)``.
        samples: how many to use. None: all.
        seed: of whatever is random in the loader or the model.

    Returns:
        weight name -> score (float32, shaped like the weight), or a string that says why it has none: its inputs
        are not those of a module's forward (recurrent and attention output weights), or it was never called.

    Raises:
        ValueError: nothing selected, or no batches.
    """
    selection.require()
    calibration = Calibration(model, batches, call, samples, seed)
    squares: dict[str, Squares] = {}

    def add(weight: Selected, key: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        old, new = squares.get(weight.name), input_squares(module, key, weight, args, kwargs)
        if isinstance(old, Tensor) and isinstance(new, Tensor):
            new = old + new
        # one use that cannot be scored makes the sum meaningless
        squares[weight.name] = old if isinstance(old, str) else new

    by_param = {weight.param: weight for weight in selection.weights}
    with evaluating(model), ExitStack() as hooks:
        for module in model.modules():
            for key, param in module.named_parameters(recurse=False):
                if param in by_param:
                    hook = module.register_forward_pre_hook(partial(add, by_param[param], key), with_kwargs=True)
                    hooks.callback(hook.remove)
        calibration.run()
    return {weight.name: _score(weight, squares.get(weight.name)) for weight in selection.weights}


def _score(weight: Selected, squares: Squares | None) -> Score:
    if squares is None:
        return "its module was not called on the calibration data"
    return squares if isinstance(squares, str) else weight.param.detach().abs().float() * squares.sqrt()


def input_squares(
    module: nn.Module, key: str, weight: Selected, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Squares:
    """What one call of the module that owns ``weight`` as ``key`` adds to the squares."""
    inputs = [*args, *kwargs.values()]
    if isinstance(module, _ConvNd):
        return _channels(module, inputs[0])
    if isinstance(module, nn.MultiheadAttention):
        names = ("query", "key", "value")
        projected = dict(zip("qkv", [*args, *(kwargs[name] for name in names[len(args) :])]))
        if key != "in_proj_weight":  # q_proj_weight, ...
            return _features(projected[key[0]], weight.param, 1)
        stacked = []
        for x in projected.values():
            squares = _features(x, weight.param, 1)
            if isinstance(squares, str):
                return squares
            stacked.append(squares.expand(module.embed_dim, -1))
        return torch.cat(stacked)
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)) and key not in _OF_THE_INPUT:
        return "its inputs are hidden states, computed inside the module"
    return _features(inputs[0] if inputs else None, weight.param, weight.dim)


_OF_THE_INPUT = ("weight_ih", "weight_ih_l0", "weight_ih_l0_reverse")


def _features(x: Any, weight: Tensor, dim: int) -> Squares:
    """Features in the last dimension of ``x``, as many as ``weight`` has along ``dim``: [in], or [in, 1] for dim 0."""
    x = getattr(x, "data", x)  # of a PackedSequence
    if weight.dim() != 2:
        return "which of its inputs each weight of this layer type multiplies is not known"
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.shape[-1:] != weight.shape[dim : dim + 1]:
        return f"the last dimension of its input is not the {weight.shape[dim]} features that it sums over"
    sums = _sum_but(x, -1)
    return sums if dim else sums[:, None]


def _channels(conv: _ConvNd, x: Tensor) -> Tensor:
    """Input channels of a convolution's weight: [I, O / groups, ...] if transposed, else [O, I / groups, ...]."""
    taps = [1] * len(conv.kernel_size)
    sums = _sum_but(x, -1 - len(taps))
    if isinstance(conv, _ConvTransposeNd):
        return sums.view(-1, 1, *taps)
    grouped = sums.view(conv.groups, -1).repeat_interleave(conv.out_channels // conv.groups, 0)
    return grouped.view(conv.out_channels, -1, *taps)


def _sum_but(x: Tensor, dim: int) -> Tensor:
    """Squares summed over all dimensions but ``dim``, in float32."""
    return x.detach().float().square().movedim(dim, -1).reshape(-1, x.shape[dim]).sum(0)
