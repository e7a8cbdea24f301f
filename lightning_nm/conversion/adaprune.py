"""AdaPrune: sparse weights fitted layer by layer to the dense network's outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from lightning_nm.conversion.calibration import Calibration, Call, evaluating
from lightning_nm.conversion.one_shot import Score, apply_masks, find_masks
from lightning_nm.conversion.reconstruction import Fit, Outcome, reconstruct, write
from lightning_nm.conversion.recording import Recorded, record
from lightning_nm.conversion.report import Conversion, Converted
from lightning_nm.conversion.units import Unit, find_units
from lightning_nm.training import Selection

Inputs = Literal["converted", "dense"]

_Values = Mapping[nn.Parameter, Tensor]


def adaprune(
    model: nn.Module,
    selection: Selection,
    batches: Iterable[Any],
    *,
    scores: Mapping[str, Score] | None = None,
    iterations: int = 1000,
    lr: float = 1e-3,
    bias_lr: float = 1e-2,
    inputs: Inputs = "converted",
    call: Call | None = None,
    samples: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Conversion:
    """Mask the selected weights, then fit each layer to the dense network's outputs (Hubara et al., NeurIPS 2021).

    Layer by layer in the order of execution, what the mask kept of the weights and the biases are trained by Adam to
    lower the squared difference of the layer's outputs to those of the dense network, on calibration data and without
    labels; masks stay fixed. A layer is the module that owns selected weights, of whatever type: it is called again
    with the inputs that it was recorded with. Afterwards re-estimate batch-norm statistics (`reestimate_batch_norm`).

    Every selected weight obeys its pattern from before the first iteration. Whatever breaks it off (Ctrl-C too) leaves
    finished layers reconstructed, the others masked, and modes, gradients and random states as they were.

    Args:
        model: the trained model, with its dense (or unstructured) weights; on any device.
        selection: its weights that become sparse.
        batches: calibration data, a few hundred samples or more; batches of 50 in the paper. They are kept in memory,
            and so are the inputs and outputs of one layer at a time, on the model's device.
        scores: see `one_shot`; None: masks by magnitude.
        iterations: steps per layer; each takes one recorded call, in shuffled order.
        lr: Adam's learning rate for weights, as published; small networks with large weights gain by a larger one.
        bias_lr: the same for biases.
        inputs: what the layers are fitted on: what they meet in the ``"converted"`` network so far, so that later
            layers make good the errors of earlier ones, or in the ``"dense"`` one, as published.
        call: gives the model a batch. None: a LightningModule by ``validation_step`` or ``predict_step``, others by
            ``model(batch)``, ``model(batch[0])`` or ``model(**batch)``.
        samples: how many to use. None: all.
        seed: of the order of calls, and of whatever is random in the loader or the model.
        progress: show a bar that names the layer and its error.

    Returns:
        What was done: retained magnitude and errors by layer, which layers were only masked, and why.

    Raises:
        ValueError: an argument out of its range; no batches; nothing selected, a weight or score that has no mask (see
            `one_shot`). The model has not been changed then.
    """
    if type(iterations) is not int or iterations < 1 or not all(0 < rate < math.inf for rate in (lr, bias_lr)):
        raise ValueError(
            f"iterations={iterations}, lr={lr} and bias_lr={bias_lr} must be positive, and iterations a whole number"
        )
    if inputs not in ("converted", "dense"):
        raise ValueError(f"inputs={inputs!r} is neither 'converted' nor 'dense'")
    scores = scores or {}
    masks = find_masks(selection, scores)
    calibration = Calibration(model, batches, call, samples, seed)
    fit = Fit(iterations, lr, bias_lr, seed)
    outcomes: dict[str, Outcome] = {}
    with torch.inference_mode(False), evaluating(model), calibration.seeded():
        units, uncalled = find_units(model, selection, calibration.run)
        dense = {param: param.detach().clone() for unit in units for param in unit.params}
        converted = apply_masks(selection, masks, scores)
        # batch norm is not folded in: outputs of a layer are least-squares problems of their own, which a scale only
        # weighs against each other, and folding would change the model's keys
        with tqdm(total=len(units) * iterations, unit="it", disable=not progress) as bar:
            for done, unit in enumerate(units, start=1):
                bar.set_description(unit.name)
                calls, remark = _calls(unit, dense, calibration.run, inputs)
                outcome = reconstruct(unit, masks, calls, fit, partial(_tick, bar))
                bar.update(done * iterations - bar.n)  # a unit may end early
                for weight in unit.weights:
                    remarks = [outcome.remark] if outcome.remark else [unit.where(weight), remark]
                    outcomes[weight.name] = outcome._replace(remark=_joined(*remarks))
    never = Outcome(None, None, "its module was never called on the calibration data: masked only")
    outcomes.update((weight.name, never) for weight in uncalled)
    return Conversion([_with(weight, outcomes[weight.name]) for weight in converted.weights], converted.skipped)


def _calls(unit: Unit, dense: _Values, run: Callable[[], None], inputs: Inputs) -> tuple[list[Recorded], str]:
    """The unit's calls on the calibration data, with the dense network's outputs, and a remark."""
    with _holding(dense):
        calls = record(unit.modules, run)
    if inputs == "dense":
        return calls, ""
    now = record(unit.modules, run)
    if len(now) != len(calls) or not all(ours.like(theirs) for ours, theirs in zip(now, calls)):
        return calls, "fitted on the dense network's inputs, as the converted one calls it otherwise"
    return [ours._replace(outputs=theirs.outputs) for ours, theirs in zip(now, calls)], ""


@contextmanager
def _holding(values: _Values) -> Iterator[None]:
    """The parameters hold ``values``; afterwards what they held before."""
    before = {param: param.detach().clone() for param in values}
    try:
        write(values.keys(), values.values())
        yield
    finally:
        write(before.keys(), before.values())


def _tick(bar: Any, error: Tensor) -> None:
    bar.update()
    if not bar.disable and bar.n % 50 == 0:  # to read it waits for a GPU
        bar.set_postfix_str(f"error {float(error):.2%}")


def _with(weight: Converted, outcome: Outcome) -> Converted:
    remark = _joined(weight.remark, outcome.remark)
    return weight._replace(masked_error=outcome.masked, error=outcome.fitted, remark=remark)


def _joined(*remarks: str) -> str:
    return "; ".join(filter(None, remarks))
