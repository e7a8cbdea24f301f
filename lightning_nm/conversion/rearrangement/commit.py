"""Writing moves into a model: all of them, or none."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_nm.conversion.rearrangement.spaces import Moves


def check_writable(tensors: dict[str, Tensor], moves: Moves) -> None:
    """Whether each tensor that moves can be permuted in place, and nothing else is permuted by that.

    Raises:
        ValueError: names the tensors, and says what to do.
    """
    spans = {name: _span(tensor) for name, tensor in tensors.items()}
    for name in moves.names:
        tensor = tensors[name]
        if tensor.is_inference() and not torch.is_inference_mode_enabled():
            raise ValueError(f"{name} was made in inference mode, and cannot be written; load the model outside of it")
        if is_expanded(tensor):
            raise ValueError(f"{name} is an expanded tensor, which cannot be permuted in place; make it contiguous")
        for other, span in spans.items():
            if other != name and _overlap(spans[name], span):
                # it would be permuted twice, or along with what does not move
                raise ValueError(
                    f"{name} and {other} share memory without being one parameter; assign one to the other's name, or "
                    "make one a copy"
                )


@torch.no_grad()
def commit(tensors: dict[str, Tensor], moves: Moves) -> None:
    """Permute the tensors in place, and the gradients that they hold. If that fails, everything is as it was."""
    permuted = {name: moves.apply(name, tensors[name]) for name in moves.names}
    # gradients are replaced: autograd may have expanded them, or have made several parameters share them
    gradients = {n: moves.apply(n, grad) for n in moves.names if (grad := tensors[n].grad) is not None}
    before = {name: (tensors[name].clone(), tensors[name].grad) for name in moves.names}
    begun = []
    try:
        for name, value in permuted.items():
            begun.append(name)
            tensors[name].copy_(value)
            tensors[name].grad = gradients.get(name)
    except BaseException:
        for name in begun:  # the one that failed comes last
            value, tensors[name].grad = before[name]
            tensors[name].copy_(value)
        raise


def is_expanded(tensor: Tensor) -> bool:
    """Whether several of its positions are the same memory."""
    return any(step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape))


def _span(tensor: Tensor) -> tuple[int, int]:
    """The addresses between which its values lie."""
    start = tensor.data_ptr()
    if not tensor.numel():
        return start, start
    last = sum(step * (size - 1) for step, size in zip(tensor.stride(), tensor.shape))
    return start, start + (last + 1) * tensor.element_size()


def _overlap(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return max(a[0], b[0]) < min(a[1], b[1])
