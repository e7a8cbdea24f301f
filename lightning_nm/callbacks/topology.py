"""How the topology drifts: flips per step, SAD since the epoch's start and since the start."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lightning_nm.callbacks.table import Row
from lightning_nm.metrics.functional.sad import _sad_compute, _sad_update
from lightning_nm.patterns import PackedMask
from lightning_nm.training import SparseWeight, Sparsifier, shards


class Topology:
    """Remembers masks of earlier moments, one bit per weight and moment, and compares."""

    def __init__(self) -> None:
        self.history: list[list[float]] = []
        """Rows of `lightning_nm.callbacks.figures.HISTORY`, one for each measurement."""
        self.epoch = -1
        """The epoch whose first masks are remembered."""
        self._references: dict[str, dict[str, PackedMask]] = {"start": {}, "epoch": {}}
        self.measured_at = 0
        """Optimizer step of the last measurement."""

    def begin_epoch(self, epoch: int, masks: dict[str, PackedMask]) -> None:
        """Remember ``masks`` as those of the epoch's start."""
        self._references["epoch"] = {name: mask.clone() for name, mask in masks.items()}
        self.epoch = epoch  # last: broken off, it is done again

    def meet(self, masks: dict[str, PackedMask]) -> None:
        """Take weights that have just become sparse into the references that lack them."""
        for reference in self._references.values():
            for name, mask in masks.items():
                if name not in reference:
                    reference[name] = mask.clone()

    def forget(self, names: Iterable[str]) -> None:
        """Drop what is remembered of weights that others have taken the place of."""
        for reference in self._references.values():
            for name in names:
                reference.pop(name, None)

    def measure(self, sparsifier: Sparsifier, *, layers: bool = False) -> dict[str, float]:
        """The numbers to log, and a row of ``history``. Waits for a GPU, and for all processes of sharded weights.

        Flips are means per optimizer step since the last measurement; so none are missed between.
        """
        self.meet(sparsifier.masks())
        steps = max(sparsifier.steps - self.measured_at, 1)
        self.measured_at = sparsifier.steps
        flips = sparsifier.take_flips()
        sparse = [weight for weight in sparsifier.weights if weight.mask is not None]
        if not sparse:
            return {}
        numel = sum(weight.param.numel() for weight in sparse)
        kept = sum(weight.kept() for weight in sparse)
        per_step = sum(flips.values()) / steps
        values = {"flips": per_step, "flip_rate": per_step / numel, "sparsity": 1 - kept / numel}
        if layers:
            for weight in sparse:
                values[f"{weight.name}/flip_rate"] = flips[weight.name] / steps / weight.param.numel()
        for moment in self._references:
            for key, value in self._divergence(moment, sparse).items():
                layer, _, number = key.rpartition("/")
                suffix = "" if number == "count" else f"_{number}"
                if layers or not layer:
                    values[f"{layer}{'/' if layer else ''}sad_{moment}{suffix}"] = float(value)
        self.history.append(
            [sparsifier.steps, values["flip_rate"], values["sad_epoch_fraction"], values["sad_start_fraction"]]
        )
        return values

    def _divergence(self, moment: str, sparse: list[SparseWeight]) -> dict[str, Tensor]:
        """`lightning_nm.metrics.functional.sparse_architecture_divergence` since that moment, of whole weights."""
        counts = []
        for weight in sparse:
            assert weight.mask is not None
            here = _sad_update(self._references[moment][weight.name], weight.mask)
            counts.append(shards.total(here, weight.param).cpu())
        return _sad_compute(torch.cat(counts), 1, [weight.name for weight in sparse])

    LAYER_COLUMNS = ("layer", "pattern", "kept", "total", "SAD since start", "fraction", "of max")

    def layer_rows(self, sparsifier: Sparsifier) -> list[Row]:
        """Per layer: how far its mask has moved since the start (none where nothing was remembered)."""
        rows: list[Row] = []
        for weight in sparsifier.weights:
            if weight.mask is not None and weight.name in self._references["start"]:
                sad = self._divergence("start", [weight])
                count, fraction, of_max = (float(sad[key]) for key in ("count", "fraction", "fraction_of_max"))
                kept, total = weight.kept(), weight.param.numel()
                rows.append(
                    (weight.name, weight.pattern, kept, total, int(count), round(fraction, 4), round(of_max, 4))
                )
        return rows

    def state_dict(self, sparsifier: Sparsifier) -> dict[str, Any]:
        """Tensors and builtins only; whole masks of sharded weights."""
        params = {weight.name: weight.param for weight in sparsifier.weights}
        references: dict[str, dict[str, Any]] = {}
        for moment, masks in self._references.items():
            wholes = {name: shards.whole_mask(mask, params[name]) for name, mask in masks.items() if name in params}
            references[moment] = {name: {"bits": w.bits, "shape": list(w.shape)} for name, w in wholes.items()}
        return {
            "history": self.history,
            "measured_at": self.measured_at,
            "epoch": self.epoch,
            "references": references,
        }

    def load_state_dict(self, state: dict[str, Any], sparsifier: Sparsifier) -> None:
        params = {weight.name: weight.param for weight in sparsifier.weights}
        self.history = [list(row) for row in state["history"]]
        self.measured_at = state["measured_at"]
        self.epoch = state["epoch"]
        for moment, masks in state["references"].items():
            wholes = {name: PackedMask(m["bits"], torch.Size(m["shape"])) for name, m in masks.items()}
            self._references[moment] = {n: shards.mask_piece_of(w, params[n]) for n, w in wholes.items() if n in params}
