"""How the topology drifts: flips per step, SAD since the epoch's start and since the start."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from lightning_nm.callbacks.table import Row
from lightning_nm.metrics.functional import sparse_architecture_divergence
from lightning_nm.patterns import PackedMask
from lightning_nm.training import Sparsifier


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
        self.epoch = epoch
        self._references["epoch"] = {name: mask.clone() for name, mask in masks.items()}

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
        """The numbers to log, and a row of ``history``. Waits for a GPU.

        Flips are means per optimizer step since the last measurement; so none are missed between.
        """
        masks = sparsifier.masks()
        self.meet(masks)
        steps = max(sparsifier.steps - self.measured_at, 1)
        self.measured_at = sparsifier.steps
        flips = sparsifier.take_flips()
        if not masks:
            return {}
        numel = sum(mask.numel() for mask in masks.values())
        kept = int(torch.stack([mask.kept().cpu() for mask in masks.values()]).sum())
        per_step = sum(flips.values()) / steps
        values = {"flips": per_step, "flip_rate": per_step / numel, "sparsity": 1 - kept / numel}
        if layers:
            for name, mask in masks.items():
                values[f"{name}/flip_rate"] = flips[name] / steps / mask.numel()
        for moment, reference in self._references.items():
            divergence = sparse_architecture_divergence({name: reference[name] for name in masks}, masks)
            for key, value in divergence.items():
                layer, _, number = key.rpartition("/")
                suffix = "" if number == "count" else f"_{number}"
                if layers or not layer:
                    values[f"{layer}{'/' if layer else ''}sad_{moment}{suffix}"] = float(value)
        self.history.append(
            [sparsifier.steps, values["flip_rate"], values["sad_epoch_fraction"], values["sad_start_fraction"]]
        )
        return values

    LAYER_COLUMNS = ("layer", "pattern", "kept", "total", "SAD since start", "fraction", "of max")

    def layer_rows(self, sparsifier: Sparsifier) -> list[Row]:
        """Per layer: how far its mask has moved since the start (none where nothing was remembered)."""
        rows: list[Row] = []
        for weight in sparsifier.weights:
            if weight.mask is not None and weight.name in self._references["start"]:
                sad = sparse_architecture_divergence(self._references["start"][weight.name], weight.mask)
                count, fraction, of_max = (float(value) for value in sad.values())
                kept, total = int(weight.mask.kept()), weight.mask.numel()
                rows.append(
                    (weight.name, weight.pattern, kept, total, int(count), round(fraction, 4), round(of_max, 4))
                )
        return rows

    def state_dict(self) -> dict[str, Any]:
        """Tensors and builtins only."""
        references = {
            moment: {name: {"bits": mask.bits, "shape": list(mask.shape)} for name, mask in masks.items()}
            for moment, masks in self._references.items()
        }
        return {
            "history": self.history,
            "measured_at": self.measured_at,
            "epoch": self.epoch,
            "references": references,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history = [list(row) for row in state["history"]]
        self.measured_at = state["measured_at"]
        self.epoch = state["epoch"]
        self._references = {
            moment: {name: PackedMask(m["bits"].clone(), torch.Size(m["shape"])) for name, m in masks.items()}
            for moment, masks in state["references"].items()
        }
