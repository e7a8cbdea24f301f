"""What of a sparse weight goes into checkpoints: builtins and tensors, so that ``weights_only`` loading takes them.

Of sharded parameters whole tensors are saved, so that a checkpoint does not depend on the number of processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lightning_nm.patterns import PackedMask
from lightning_nm.training import shards
from lightning_nm.training.sparse_weight import SparseWeight

KEYS = ("shape", "pattern", "dim", "method", "method_state", "steps", "flips", "mask", "hidden")


def weight_state(weight: SparseWeight) -> dict[str, Any]:
    """The state of one weight: live tensors, no copies, unless it is sharded. All processes must call this.

    While the parameter holds other values (an average that is swapped in), the state is that of a weight
    that starts from these: what is saved belongs together.
    """
    param = weight.param
    other = shards.anywhere(weight.mask is not None and not weight.holds(), param)
    return {
        "shape": list(param.shape),
        "pattern": str(weight.pattern),
        "dim": weight.dim,
        "method": type(weight.method).__name__,
        "method_state": weight.method.state_dict(),
        "steps": weight.steps,
        "flips": int(shards.total(torch.as_tensor(weight.tally.flips), param)),
        "mask": None if other or weight.mask is None else shards.whole_mask(weight.mask, param).bits,
        "hidden": None if other or weight.hidden is None else shards.whole(weight.hidden, param),
    }


def restore_weight(weight: SparseWeight, state: dict[str, Any]) -> None:
    """Take a checkpoint's state; `SparseWeight.settle` then joins it with the restored weight.

    Raises:
        ValueError: it belongs to another pattern, dimension, method or shape.
    """
    if not isinstance(state, dict) or set(state) != set(KEYS):
        raise ValueError(f"{weight.name}: the checkpoint's state is not one of a sparse weight")
    shape = list(weight.param.shape)
    if state["shape"] != shape:
        raise ValueError(
            f"{weight.name}: the checkpoint's weight has shape {state['shape']}, this one {shape}: "
            "it belongs to another model"
        )
    mine = {"pattern": str(weight.pattern), "dim": weight.dim, "method": type(weight.method).__name__}
    for key, value in mine.items():
        if state[key] != value:
            raise ValueError(
                f"{weight.name}: the checkpoint was trained with {key} {state[key]}, this run asks for {value}. "
                "Resume with the same settings, or load only the weights to start anew from them"
            )
    bits, hidden = state["mask"], state["hidden"]
    expected = shape if bits is not None and weight.method.keeps_hidden else None
    found = None if hidden is None else list(hidden.shape)
    if found != expected:
        raise ValueError(f"{weight.name}: the checkpoint's hidden part has shape {found}, expected {expected}")
    try:
        mask = None if bits is None else PackedMask(bits, weight.param.shape)
    except ValueError as error:
        raise ValueError(f"{weight.name}: the checkpoint is damaged: {error}") from None
    weight.mask = None if mask is None else shards.mask_piece_of(mask, weight.param)
    weight.hidden = None if hidden is None else shards.piece_of(hidden, weight.param)
    weight.steps = state["steps"]
    weight.tally.flips = state["flips"] if shards.is_first(weight.param) else 0
    weight.method.load_state_dict(state["method_state"])


def require_joined(strangers: Sequence[str]) -> None:
    """Raise ValueError if restored hidden parts met weights (named ``strangers``) that are not theirs."""
    if strangers:
        raise ValueError(
            f"the model's weights {list(strangers)} are not the sparse ones that the restored state belongs to; "
            "load the model's state dict of the same checkpoint first"
        )


def require_same(state: dict[str, Any], names: list[str]) -> None:
    """Raise ValueError unless a checkpoint's state is about just the weights of these names."""
    missing = [n for n in names if n not in state]
    extra = [n for n in state if n not in names]
    if missing or extra:
        raise ValueError(
            "the checkpoint's sparse weights are not the ones selected now"
            + (f"; selected but not in the checkpoint: {missing}" if missing else "")
            + (f"; in the checkpoint but not selected: {extra}" if extra else "")
            + ". Resume the model and the selection that the checkpoint was made with"
        )
