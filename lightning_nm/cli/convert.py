"""`lightning-nm convert`: a trained checkpoint made N:M sparse."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map

from lightning_nm.callbacks.table import print_table
from lightning_nm.callbacks.whole_files import WholeFileIO
from lightning_nm.cli.imported import imported, options
from lightning_nm.cli.report import load_checkpoint
from lightning_nm.conversion import (
    Conversion,
    Rearrangement,
    activation_scores,
    adaprune,
    global_budget,
    one_shot,
    overrides_for,
    rearrange,
    reestimate_batch_norm,
)
from lightning_nm.conversion.checkpoint import converted_checkpoint
from lightning_nm.patterns import NM, Pattern, parse
from lightning_nm.training import Selection, select
from lightning_nm.training.selection import plain_name

DESCRIPTION = """\
Make a trained model N:M sparse: mask its weights, and with --data fit each layer to the dense network's outputs
(AdaPrune, Hubara et al., NeurIPS 2021) and re-estimate batch norm. No labels are used, nothing is trained anew.
"""


def main(args: Sequence[str]) -> int:
    """Exit status 0; what cannot be done is raised."""
    # models of the user's are imported from the current folder, as `python -m` would
    sys.path.insert(0, os.getcwd())
    given, rest = _parser().parse_known_args(args)
    given.method = given.method or ("adaprune" if given.data else "one-shot")
    _refuse(given)
    checkpoint = load_checkpoint(given.checkpoint)
    factories = {"model": imported(given.model), **({"data": imported(given.data)} if given.data else {})}
    arguments = options(factories, rest)
    model = _load(factories["model"], arguments["model"], given.checkpoint, checkpoint).to(given.device)
    batches = _batches(factories["data"], arguments["data"], given) if given.data else None

    calibration = {"samples": given.samples, "seed": given.seed, "call": imported(given.call) if given.call else None}
    selection = _select(model, checkpoint, given)
    if given.rearrange and batches is not None:
        print_table(
            f"{given.checkpoint}, rearranged", Rearrangement.COLUMNS, _rearranged(model, selection, batches, given)
        )
    try:
        conversion = _convert(model, selection, batches, calibration, given)
    except (AttributeError, KeyError, IndexError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"{given.model} cannot be run on the batches of {given.data} ({_told(error)}); --call names a function of "
            "(model, batch) that runs it"
        ) from error
    print_table(f"{given.checkpoint}, by {given.method}", Conversion.COLUMNS, conversion.rows())
    if any(isinstance(module, _BatchNorm) for module in model.modules()):
        print(f"batch norm: {_batch_norm(model, batches, calibration)}")
    WholeFileIO().save_checkpoint(converted_checkpoint(checkpoint, model, conversion), given.output)
    print(f"wrote {given.output}; check it: lightning-nm report {given.output}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lightning-nm convert",
        description=DESCRIPTION,
        epilog="Arguments of --model and --data follow as --model.NAME VALUE and --data.NAME VALUE.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    again = "may be given again"
    add("checkpoint", type=Path, help="a Lightning checkpoint, or a saved state dict")
    add("--model", required=True, metavar="my.Net", help="LightningModule, other module, or a function returning one")
    add("--data", metavar="my.Data", help="LightningDataModule (its training data are used), or an iterable of batches")
    add("-o", "--output", type=Path, required=True, metavar="OUT.ckpt")
    add("--force", action="store_true", help="overwrite OUT.ckpt")
    add("--pattern", metavar="N:M", help="as in training: 2:4, 4:8T, 1x16@0.75, ...")
    add("--m", type=int, metavar="M", help="instead of --pattern: N for each layer by the density that it has")
    add("--confidence", type=float, default=0.95, help="of that choice (default 0.95); higher keeps more")
    add("--global-budget", action="store_true", help="of patterns like 1x16@0.75: all layers share one budget")
    add("--ignore", action="append", default=[], metavar="GLOB", help=f"weights that stay dense; {again}")
    add("--override", action="append", default=[], metavar="GLOB=N:M", help=f"other pattern, or GLOB=dense; {again}")
    add("--rearrange", action="store_true", help="first reorder channels so that the masks keep more; needs --data")
    add("--method", choices=("adaprune", "one-shot"), help="default: adaprune with --data, one-shot without")
    add("--scores", choices=("magnitude", "activations"), default="magnitude", help="what stays; default magnitude")
    add("--iterations", type=int, default=1000, help="of AdaPrune, for each layer (default 1000)")
    add("--lr", type=float, default=1e-3, help="of AdaPrune for weights (default 1e-3, as published)")
    add("--samples", type=int, default=1000, help="of the calibration data (default 1000)")
    add("--call", metavar="my.call", help="function of (model, batch) that runs the model, if its own steps cannot")
    add("--seed", type=int, default=0)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--no-progress", action="store_true", help="no progress bar")
    return parser


def _refuse(given: argparse.Namespace) -> None:
    """Raise ValueError for what could only fail after the work is done."""
    if (given.pattern is None) == (given.m is None):
        raise ValueError("name the pattern, --pattern N:M; or --m M to choose N by each layer's density")
    if given.data is None and (given.method == "adaprune" or given.scores == "activations" or given.rearrange):
        raise ValueError("AdaPrune, activation scores and --rearrange need calibration data: --data my.Data")
    if given.rearrange and given.call is not None:
        raise ValueError(
            "--rearrange gives the model's forward the first element of a batch; it does not go with --call"
        )
    try:
        torch.empty(0, device=given.device)
    except (RuntimeError, AssertionError) as error:  # no such device; torch built without it
        raise ValueError(f"--device {given.device}: {str(error).splitlines()[0]}") from error
    folder = next(above for above in given.output.absolute().parents if above.exists())
    if not folder.is_dir():
        raise ValueError(f"{given.output} cannot be written: {folder} is a file")
    if given.output.is_dir():
        raise ValueError(f"{given.output} is a folder; name a file in it")
    if given.output.exists():
        if given.checkpoint.exists() and given.output.samefile(given.checkpoint):
            raise ValueError(f"{given.output} is the checkpoint that is converted; it is not overwritten")
        if not given.force:
            raise ValueError(f"{given.output} exists; --force overwrites it")


def _load(factory: Callable[..., Any], arguments: dict[str, Any], path: Path, checkpoint: dict[str, Any]) -> nn.Module:
    """The model with the checkpoint's weights."""
    name = getattr(factory, "__qualname__", str(factory))
    loaded: Any
    try:
        if "pytorch-lightning_version" in checkpoint and hasattr(factory, "load_from_checkpoint"):
            loaded = factory.load_from_checkpoint(path, map_location="cpu", weights_only=True, **arguments)
        else:
            loaded = factory(**arguments)
            if isinstance(loaded, nn.Module):
                loaded.load_state_dict(checkpoint["state_dict"])
    except TypeError as error:
        raise ValueError(f"{name} cannot be made: {error}; give its arguments as --model.NAME VALUE") from error
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit {name}: {' '.join(str(error).split())}") from error
    if not isinstance(loaded, nn.Module):
        raise ValueError(f"{name} made a {type(loaded).__name__}, not a module")
    return loaded


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _batches(factory: Callable[..., Any], arguments: dict[str, Any], given: argparse.Namespace) -> Iterable[Any]:
    try:
        data = factory(**arguments)
        if not hasattr(data, "train_dataloader"):
            batches: Iterable[Any] = list(data) if isinstance(data, Iterator) else data  # it is gone through twice
            if not isinstance(batches, Iterable):
                raise ValueError(f"{given.data} made a {type(data).__name__}, which gives no batches")
            return batches
        data.prepare_data()
        data.setup("fit")
        loader = data.train_dataloader()
    except (AttributeError, KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f"{given.data} gives no batches without a Trainer ({_told(error)})") from error
    if isinstance(loader, (dict, list, tuple)):
        raise ValueError(f"{type(data).__name__}.train_dataloader gives several loaders; calibration takes one")
    return loader  # type: ignore[no-any-return]


def _select(model: nn.Module, checkpoint: Mapping[str, Any], given: argparse.Namespace) -> Selection:
    named: dict[str, Pattern | None] = {}
    for written in given.override:
        glob, equals, other = written.rpartition("=")
        if not equals:
            raise ValueError(f"--override {written}: write GLOB=N:M or GLOB=dense")
        named[glob] = None if other == "dense" else parse(other)
    pattern: Pattern = parse(given.pattern) if given.m is None else NM(given.m, given.m)
    elsewhere = [*given.ignore, *named]
    overrides: dict[str, Pattern | str | None] = {}
    if given.m is not None:
        overrides.update(overrides_for(model, given.m, given.confidence, ignore=elsewhere))
        if overrides and not any([*overrides.values(), *named.values()]):
            raise ValueError(
                f"no layer has so many zeros that N:{given.m} with N < {given.m} would hold at confidence "
                f"{given.confidence}; lower --confidence, or name the pattern with --pattern"
            )
    if given.global_budget:
        overrides.update(global_budget(model, pattern, ignore=elsewhere))
    selection = select(model, pattern, ignore=given.ignore, overrides={**overrides, **named}).require()
    held = {plain_name(key) for key in checkpoint["state_dict"]}
    if absent := [weight.name for weight in selection.weights if weight.name not in held]:  # strict_loading = False
        raise ValueError(f"{given.checkpoint} does not hold {absent}; leave them dense with --ignore")
    return selection


def _convert(
    model: nn.Module,
    selection: Selection,
    batches: Iterable[Any] | None,
    calibration: dict[str, Any],
    given: argparse.Namespace,
) -> Conversion:
    scores = None
    if batches is not None and given.scores == "activations":
        scores = activation_scores(model, selection, batches, **calibration)
    if batches is None or given.method == "one-shot":
        return one_shot(selection, scores)
    shown = not given.no_progress
    return adaprune(
        model,
        selection,
        batches,
        scores=scores,
        iterations=given.iterations,
        lr=given.lr,
        progress=shown,
        **calibration,
    )


def _rearranged(
    model: nn.Module, selection: Selection, batches: Iterable[Any], given: argparse.Namespace
) -> Sequence[Sequence[object]]:
    """Reorder channels; the rows that say which."""
    try:
        return rearrange(model, _example(next(iter(batches)), given.device), selection, seed=given.seed).rows()
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"--rearrange: {' '.join(str(error).split())}") from error


def _example(batch: Any, device: str) -> Any:
    """What the model's forward takes of a batch: a mapping as it is, the first element of a list or tuple, a tensor."""
    taken = batch[0] if isinstance(batch, (list, tuple)) else batch
    return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, taken)


def _batch_norm(model: nn.Module, batches: Iterable[Any] | None, calibration: dict[str, Any]) -> str:
    """Re-estimate statistics; what there is to say of it."""
    if batches is None:
        return "statistics are still those of the dense network; --data has them estimated anew"
    try:
        return f"statistics of {reestimate_batch_norm(model, batches, **calibration)} layers estimated anew"
    except ValueError as error:  # a last batch of one sample, for example: no reason to lose the conversion
        return f"statistics are still those of the dense network ({error})"
