"""Whether a card is to be trusted with masks."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from lightning_nm.kernels.triton import densify, masks, nm_mask, split, transposable
from tests.kernels.triton.ahead_of_time import Request, compiled
from tests.kernels.triton.device import DEVICE


@pytest.mark.gpu
def test_kernels_that_equal_plain_torch_pass() -> None:
    """All of them, in every dtype that they know."""
    assert masks.self_test(DEVICE) is None


@pytest.mark.gpu
def test_other_masks_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but a mask that is bit for bit the reference's will do."""
    original = masks.nm_split_
    monkeypatch.setattr(masks, "nm_split_", lambda *given: original(*given[:3], 1, *given[4:]))
    assert "give other masks than plain torch" in str(masks.self_test(DEVICE))


def test_kernels_that_do_not_run_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a compiler or a driver may say."""
    monkeypatch.setattr(masks, "nm_split_", lambda *given: 1 / 0)
    assert "do not run (ZeroDivisionError" in str(masks.self_test(DEVICE))


def test_dtypes() -> None:
    """Float64 is left to plain torch."""
    assert masks.supports(torch.empty(1, dtype=torch.bfloat16, device=DEVICE))
    assert not masks.supports(torch.empty(1, dtype=torch.float64, device=DEVICE))


WEIGHT = {"weight_ptr": "*fp32"}
MASK = {"mask_ptr": "*u8"}
BOTH = {**WEIGHT, "hidden_ptr": "*fp32"}
STRIDES = dict.fromkeys(("stride_output", "stride_input", "stride_tap"), "i32")
GIVEN = {**BOTH, "bits_ptr": "*u8", **MASK, "counts_ptr": "*i64", "numel": "i32"}
TILES = {**WEIGHT, **MASK, **dict.fromkeys(("tiles", "inputs", "taps"), "i32"), **STRIDES}
DENSIFIED = {**BOTH, "grad_ptr": "*fp32", "scale_ptr": "*fp32", "factor": "fp32", "numel": "i32"}
KERNELS = {
    "a mask of small groups apart": (nm_mask, {**WEIGHT, **MASK, "groups": "i32", "stride": "i32"}, {"N": 2, "M": 4}),
    "a transposable mask": (transposable, TILES, {}),
    "by a mask": (split, GIVEN, {"MASK": True, "HIDDEN": True}),
    "by the mask that is there": (split, GIVEN, {"MASK": False, "HIDDEN": True}),
    "densify": (densify, DENSIFIED, {"SCALED": True}),
}
BUDGET = {
    (90, "a mask of small groups apart"): (4, 27),  # which costs as much to find as to compare
    (90, "a transposable mask"): (16, 42),  # which moves at every 40th step
    (90, "by a mask"): (8, 17),
    (90, "by the mask that is there"): (8, 12),
    (90, "densify"): (8, 8),
    (80, "by a mask"): (8, 25),
    (80, "a transposable mask"): (16, 60),
}
"""(entries of a thread, integer instructions per weight), by compute capability and kernel."""


def request(capability: int, name: str) -> Request:
    module, signature, constants = KERNELS[name]
    kernel = "split_given" if module is split else "kernel"
    return Request(
        module.__name__, signature, {**constants, "BLOCK": module.BLOCK}, capability, module.WARPS, kernel=kernel
    )


def test_machine_code() -> None:
    """No spills; integer instructions per weight within the budget."""
    for (asked, (entries, budget)), binary in zip(BUDGET.items(), compiled([request(*asked) for asked in BUDGET])):
        assert binary.spills == 0, asked
        assert binary.integer(loop=False) / entries <= budget, asked
