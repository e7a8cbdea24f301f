"""`lightning-nm report`: does a checkpoint obey its pattern?"""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_nm.callbacks.table import print_table
from lightning_nm.conversion.checkpoint import RECORD
from lightning_nm.patterns import Pattern, parse
from lightning_nm.training.selection import plain_name


class Verdict(NamedTuple):
    """What there is to say of one tensor of a checkpoint."""

    name: str
    shape: tuple[int, ...]
    pattern: str
    nonzero: int
    obeys: bool | None
    """None: the tensor is not meant to be sparse."""
    remark: str


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a Lightning checkpoint or a plain state dict, without running any code in it.

    Raises:
        ValueError: there is no such file, or it is no checkpoint.
    """
    if path.is_dir():
        raise ValueError(
            f"{path} is a folder; make one file of a sharded checkpoint first: "
            f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {path} {path}.pt"
        )
    if not path.is_file():
        raise ValueError(f"there is no checkpoint {path}")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, OSError) as error:
        reason = (
            "it holds other objects than tensors" if "Unsupported global" in str(error) else "it is none, or damaged"
        )
        raise ValueError(f"{path} cannot be read as a checkpoint: {reason}") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} holds a {type(loaded).__name__}, not a checkpoint or state dict")
    checkpoint = loaded if "state_dict" in loaded else {"state_dict": loaded}
    if not all(isinstance(checkpoint.get(key, {}), dict) for key in ("state_dict", "callbacks", RECORD)):
        raise ValueError(f"{path} is no checkpoint: its state_dict, its callbacks or its {RECORD} are no mappings")
    return checkpoint


def selected_weights(checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    """The sparse weights that the callback or a conversion recorded in a checkpoint, None where neither took part."""
    for state in checkpoint.get("callbacks", {}).values():
        if isinstance(state, dict) and {"weights", "topology"} <= state.keys():
            return dict(state["weights"])
    return checkpoint.get(RECORD)


def examine(checkpoint: Mapping[str, Any], pattern: Pattern | None, ignore: Sequence[str] = ()) -> list[Verdict]:
    """A verdict on every matrix and kernel of a checkpoint.

    Where the callback or a conversion recorded which weights it made sparse, these are judged, each by
    ``pattern`` or else by its own. Anywhere else every weight is that ``pattern`` fits.

    Raises:
        ValueError: nothing to judge, no pattern to judge by, or a weight that is not there.
    """
    weights = {plain_name(k): v for k, v in checkpoint["state_dict"].items() if isinstance(v, Tensor)}
    recorded = selected_weights(checkpoint)
    if recorded is None and pattern is None:
        raise ValueError("the checkpoint does not say which pattern it was trained with; name it with --pattern")
    verdicts = []
    for name in recorded or ():
        if name not in weights:
            raise ValueError(f"{name}: made sparse, but not among the checkpoint's weights")
    for name, weight in weights.items():
        if not weight.is_floating_point() or weight.dim() < 2:
            continue
        rule, dim, reason = pattern, 1, None
        if any(fnmatchcase(name, glob) for glob in ignore):
            reason = "ignored"
        elif recorded is None:
            assert pattern is not None
            reason = pattern.why_not(weight.shape)
        elif name not in recorded:
            reason = "not selected in the conversion" if RECORD in checkpoint else "not selected in training"
        else:
            rule = pattern or parse(recorded[name]["pattern"])
            dim = recorded[name]["dim"]
            reason = rule.why_not(weight.shape, dim=dim)
        verdicts.append(_judge(name, weight, rule, dim, reason))
    if not any(v.obeys is not None for v in verdicts):
        reasons = "".join(f"\n  {v.name} {list(v.shape)}: {v.remark}" for v in verdicts)
        raise ValueError(f"no weight to judge{reasons}")
    return verdicts


def _judge(name: str, weight: Tensor, pattern: Pattern | None, dim: int, reason: str | None) -> Verdict:
    shape, nonzero = tuple(weight.shape), int(weight.count_nonzero())
    if reason is not None or pattern is None:
        return Verdict(name, shape, "", nonzero, None, reason or "")
    wrong = pattern.violations(weight, dim=dim)
    excess = f"{wrong:,} units more" if pattern.layerwise else f"{wrong:,} groups hold more"
    remark = f"{excess} than the pattern allows" if wrong else ""
    return Verdict(name, shape, str(pattern), nonzero, not wrong, remark)


def pattern_argument(written: str) -> Pattern:
    """`parse` as argparse wants it, so that its message reaches the user."""
    try:
        return parse(written)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def main(args: Sequence[str]) -> int:
    """Exit status 0: every judged weight obeys; 1: some do not."""
    parser = argparse.ArgumentParser(
        prog="lightning-nm report",
        description="Say layer by layer whether a checkpoint obeys its N:M pattern. Exit status 1 if it does not. "
        "A plain state dict does not say which weights were meant to be sparse, nor what layers they belong to: "
        "every matrix that the pattern fits is judged along dimension 1; name embeddings and the like with --ignore.",
    )
    parser.add_argument("checkpoint", type=Path, help="a Lightning checkpoint, or a saved state dict")
    parser.add_argument("--pattern", type=pattern_argument, help="N:M; default: what each weight was trained with")
    parser.add_argument(
        "--ignore", action="append", default=[], metavar="GLOB", help="weights that may be dense; may be given again"
    )
    given = parser.parse_args(args)
    verdicts = examine(load_checkpoint(given.checkpoint), given.pattern, given.ignore)
    words = {True: "yes", False: "NO", None: "-"}
    rows = [
        (
            v.name,
            list(v.shape),
            v.pattern or "-",
            f"{v.nonzero:,} / {torch.Size(v.shape).numel():,}",
            words[v.obeys],
            v.remark,
        )
        for v in verdicts
    ]
    print_table(str(given.checkpoint), ("layer", "shape", "pattern", "non-zero / total", "obeys", "remarks"), rows)
    judged = [v for v in verdicts if v.obeys is not None]
    wrong = [v.name for v in judged if not v.obeys]
    print(f"{len(judged) - len(wrong)} of {len(judged)} weights obey" + (f"; not {', '.join(wrong)}" if wrong else ""))
    return 1 if wrong else 0
