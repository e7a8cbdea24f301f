"""One weight by itself: its memory, its bits, its dtypes and layouts, what it saves and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_nm import kernels
from lightning_nm.patterns import NM, parse
from lightning_nm.training import SRSTE, SSTE, Frozen, Method, Schedule, Selected, SparseWeight
from tests.oracles import hamming_by_hand, nm_mask_by_hand, raw
from tests.training.runs import ALWAYS, UPDATE, master, most_kept, noise, sparse_weight, update

# -- what it is made of -------------------------------------------------------------------------------


def tensors_in(thing: Any) -> list[Tensor]:
    """Every tensor among the attributes of ``thing`` and of what belongs to it."""
    if isinstance(thing, Tensor):
        return [thing]
    return [tensor for value in getattr(thing, "__dict__", {}).values() for tensor in tensors_in(value)]


def bytes_beside(weight: SparseWeight) -> int:
    return sum(t.numel() * t.element_size() for t in tensors_in(weight) if t is not weight.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(8, 12), (3, 4), (5, 4, 3, 3)])
def test_memory_is_one_copy_and_one_bit_per_weight(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Beside the weight lie its hidden part and ``ceil(numel / 8)`` bytes of mask, nothing else."""
    weight = sparse_weight(noise(*shape).to(dtype))
    update(weight, noise(*shape, seed=1).to(dtype))
    numel = weight.param.numel()
    assert bytes_beside(weight) == numel * dtype.itemsize + (numel + 7) // 8


def test_frozen_memory_is_one_bit_per_weight() -> None:
    """A method that keeps nothing hidden pays for the mask alone."""
    weight = sparse_weight(noise(5, 12), Frozen())
    update(weight, noise(5, 12, seed=1))
    assert bytes_beside(weight) == 8


def test_a_dense_weight_takes_no_memory() -> None:
    """Before the schedule's start there is nothing to keep."""
    weight = SparseWeight(Selected("w", nn.Parameter(noise(4, 8)), NM(2, 4), 1), SRSTE())
    weight.settle(Schedule(start=1))
    assert bytes_beside(weight) == 0


# -- the dense weight, bit for bit ----------------------------------------------------------------------


@pytest.mark.parametrize("make", [SRSTE, SSTE])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_opening_returns_the_dense_weight_bit_for_bit(dtype: torch.dtype, make: Callable[[], Method]) -> None:
    """Sparse + hidden is the dense master in every dtype, signs of zeros included (promise 2)."""
    dense = noise(6, 16).to(dtype)
    dense[0, :4] = torch.tensor([0.0, -0.0, -0.0, 0.0])
    dense[1, :4] = torch.tensor([3.0, 2.0, -0.0, 0.0])
    weight = sparse_weight(dense, make())
    weight.param.grad = torch.zeros_like(weight.param)
    with torch.no_grad():
        weight.open(UPDATE)
    assert torch.equal(raw(weight.param), raw(dense))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_masks_are_the_pattern_in_every_dtype(dtype: torch.dtype) -> None:
    """Masks are right in half precision too, where ties are common: the lowest index wins."""
    dense = (noise(6, 16) * 4).round().div(4).to(dtype)
    weight = sparse_weight(dense)
    dense = update(weight, (noise(6, 16, seed=1) * 4).round().div(4).to(dtype))
    assert torch.equal(weight.mask.unpack(), nm_mask_by_hand(dense, 2, 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_dtype(dtype: torch.dtype) -> None:
    """Neither the weight nor its hidden part is widened."""
    weight = sparse_weight(noise(4, 8).to(dtype))
    update(weight, noise(4, 8, seed=1).to(dtype))
    assert (weight.param.dtype, weight.hidden.dtype) == (dtype, dtype)


@pytest.mark.parametrize("dim", [0, 1])
def test_channels_last_equals_contiguous(dim: int) -> None:
    """The memory format of a convolution changes neither its numbers nor its mask's bits."""
    dense = noise(8, 8, 3, 3)
    plain = sparse_weight(dense, dim=dim)
    last = sparse_weight(dense.contiguous(memory_format=torch.channels_last), dim=dim)
    for seed in range(1, 4):
        change = noise(8, 8, 3, 3, seed=seed)
        update(plain, change)
        update(last, change)
    assert torch.equal(last.mask.bits, plain.mask.bits)
    assert torch.equal(raw(last.param), raw(plain.param))
    assert torch.equal(raw(last.hidden), raw(plain.hidden))


def test_channels_last_stays_channels_last() -> None:
    """Splitting does not rearrange a parameter's memory."""
    weight = sparse_weight(noise(8, 8, 3, 3).contiguous(memory_format=torch.channels_last))
    update(weight, noise(8, 8, 3, 3, seed=1))
    assert weight.param.is_contiguous(memory_format=torch.channels_last)
    assert weight.hidden.is_contiguous(memory_format=torch.channels_last)


def test_groups_along_dim_0() -> None:
    """A transposed convolution's groups run down its first dimension."""
    dense = noise(8, 3, 2)
    weight = sparse_weight(dense, dim=0)
    assert torch.equal(weight.mask.unpack(), nm_mask_by_hand(dense, 2, 4, dim=0))


# -- counting ---------------------------------------------------------------------------------------------


def test_flips_are_counted_by_entry() -> None:
    """Flips add up over steps, entry by entry, the first mask not being one."""
    weight = sparse_weight(noise(6, 16))
    before, flips = weight.mask.unpack(), 0
    for seed in range(1, 4):
        update(weight, noise(6, 16, seed=seed))
        after = weight.mask.unpack()
        flips += hamming_by_hand(before, after)
        before = after
    assert flips > 0
    assert int(weight.tally.flips) == flips


def test_reclosing_counts_no_step() -> None:
    """A closure that runs again, or a step that broke off, is no step."""
    weight = sparse_weight(noise(4, 8))
    weight.param.grad = torch.zeros_like(weight.param)
    with torch.no_grad():
        weight.open(UPDATE)
        weight.reclose(moves=True)
    assert (weight.steps, weight.is_open, most_kept(weight.param, 4)) == (0, False, 2)


def test_reclosing_may_leave_the_mask() -> None:
    """Between refreshes a broken-off step does not move the mask either."""
    weight = sparse_weight(noise(4, 8))
    mask = weight.mask.unpack()
    weight.param.grad = torch.zeros_like(weight.param)
    with torch.no_grad():
        weight.open(UPDATE)
        weight.param += noise(4, 8, seed=1)
        dense = weight.param.detach().clone()
        weight.reclose(moves=False)
    assert torch.equal(weight.mask.unpack(), mask)
    assert torch.equal(raw(master(weight)), raw(dense))


# -- NaN and infinity ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", ["2:4T", "2:4V2", "1x2@0.5", "unstructured@0.5", "filter@0.5"])
def test_nonfinite_weights_of_any_pattern_are_found_at_once(written: str) -> None:
    """On a CPU nothing is put off to a later step, when the loss is NaN and every layer to blame."""
    weight = SparseWeight(Selected("layer.weight", nn.Parameter(noise(4, 8)), parse(written), 1), SRSTE())
    with torch.no_grad():
        weight.split()
    for _ in range(3):
        change = torch.zeros(4, 8)
        change[0, 0] = float("nan")
        update(weight, change)
    with pytest.raises(ValueError, match=r"layer\.weight .*: 1 NaN or infinite entries"):
        weight.check_finite(wait=False)


@pytest.mark.parametrize("method", [SRSTE(), SSTE(), Frozen()])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("shape", [(3, 4), (4, 16)])
def test_nonfinite_weights_are_refused_by_name_and_step(shape: tuple[int, int], wrong: float, method: Method) -> None:
    """A mask of NaN would mean nothing: the error names the weight and the optimizer step (promise 7)."""
    weight = sparse_weight(noise(*shape), method)
    update(weight, torch.zeros(shape))
    change = torch.zeros(shape)
    change[0, 0] = wrong
    update(weight, change)
    with pytest.raises(ValueError, match=r"layer\.weight .*1 NaN or infinite entries at optimizer step 2"):
        weight.check_finite()


@pytest.mark.parametrize("method", [SRSTE(), SSTE(), Frozen()])
def test_no_step_waits_for_the_device(method: Method) -> None:
    """On a device other than the CPU nothing is read back until it is asked for: a meta tensor has nothing to read."""
    selected = Selected("layer.weight", nn.Parameter(torch.empty(4, 8, device="meta")), NM(2, 4), 1)
    weight = SparseWeight(selected, method)
    with torch.no_grad():
        weight.split()
        for _ in range(2):
            update(weight, torch.empty(4, 8, device="meta"))
    weight.check_finite(wait=False)
    with pytest.raises(RuntimeError, match="meta"):
        weight.check_finite()


class Launches(TorchDispatchMode):
    """Whatever computes something: views do not."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operator.overloadpacket.__name__ not in ("detach", "alias", "select", "view"):
            self.seen.append(str(operator))
        return operator(*args, **(kwargs or {}))


def test_a_step_launches_two_kernels_on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """One before the update and one after it: what is counted, and whether it is finite, takes none."""
    weight, launches = sparse_weight(noise(4, 8)), Launches()
    weight.param.grad = torch.zeros_like(weight.param)
    card = SimpleNamespace(
        densify_=lambda *_: launches.seen.append("densify"), nm_split_=lambda *_: launches.seen.append("split")
    )
    monkeypatch.setattr(kernels, "_cuda_for", lambda *_: card)
    weight.tally._counts = torch.zeros(2, dtype=torch.int64)  # as if the card counted
    with torch.no_grad(), launches:
        weight.open(UPDATE)
        weight.close(ALWAYS)
        weight.check_finite(wait=False)
    assert launches.seen == ["densify", "split"]


# -- following the parameter ----------------------------------------------------------------------------------


def test_settling_follows_a_dtype() -> None:
    """A converted parameter keeps its mask and its hidden part, in the new dtype."""
    weight = sparse_weight(noise(4, 8))
    hidden, mask = weight.hidden.clone(), weight.mask.unpack()
    weight.param = nn.Parameter(weight.param.detach().bfloat16())
    assert not weight.settle(ALWAYS)
    assert torch.equal(raw(weight.hidden), raw(hidden.bfloat16()))
    assert torch.equal(weight.mask.unpack(), mask)


def test_settling_notices_other_weights() -> None:
    """Values that do not fit the mask are new dense ones."""
    weight = sparse_weight(noise(4, 8))
    dense = noise(4, 8, seed=1)
    with torch.no_grad():
        weight.param.copy_(dense)
        assert weight.settle(ALWAYS)
    assert torch.equal(raw(master(weight)), raw(dense))


def test_beta_belongs_to_the_weights_that_are_trained() -> None:
    """Pretrained weights loaded after set-up get their own S-STE scale, not the random initialisation's."""
    weight = sparse_weight(torch.rand(64, 64, generator=torch.Generator().manual_seed(0)), SSTE())
    dense = noise(64, 64) ** 3
    with torch.no_grad():
        weight.param.copy_(dense)
        weight.settle(ALWAYS)
    assert float(weight.method.beta) == pytest.approx(float(sparse_weight(dense, SSTE()).method.beta))


def test_a_weight_of_another_shape_is_refused() -> None:
    """A parameter replaced by one of another shape does not fit its mask."""
    weight = sparse_weight(noise(4, 8))
    weight.param = nn.Parameter(noise(4, 12))
    with pytest.raises(ValueError, match=r"layer\.weight: .*\[4, 8\].*\[4, 12\]"):
        weight.settle(ALWAYS)
