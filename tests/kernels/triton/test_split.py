"""The splits in Triton."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from lightning_nm.kernels import reference
from lightning_nm.kernels.bits import byte_count
from lightning_nm.kernels.triton import split
from tests.kernels.triton.ahead_of_time import Binary, Request, compiled
from tests.kernels.triton.device import DEVICE

BUDGET = {
    (4, "*fp32"): 19,
    (8, "*fp32"): 20,
    (16, "*fp32"): 22,
    (32, "*fp32"): 26,
    (4, "*bf16"): 17,
    (16, "*bf16"): 19,
}
"""Integer instructions per weight, by M. A card affords some 42 while it moves a float32 weight, 21 for 16 bits."""
_INTEGER = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


def ties(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Weights with many equal magnitudes and zeros of both signs."""
    torch.manual_seed(seed)
    weight = (torch.randn(shape) * 2).round() / 2
    return torch.where(torch.rand(shape) < 0.1, -0.0, weight).to(dtype)


def some_bits(weight: Tensor) -> Tensor:
    """The packed mask of a moment before."""
    bits = torch.randint(0, 256, (byte_count(weight.numel()),), dtype=torch.uint8)
    if weight.numel() % 8:
        bits[-1] &= (1 << weight.numel() % 8) - 1
    return bits


def assert_same(
    shape: tuple[int, ...], dim: int, n: int, m: int, dtype: torch.dtype, with_hidden: bool, seed: int
) -> None:
    """Weight, hidden part, mask and counts, bit for bit those of the reference; then once more by the mask."""
    weight, integers = ties(shape, dtype, seed), _INTEGER[dtype]
    if seed % 4 == 0:
        weight.view(-1)[seed % weight.numel()] = torch.inf
    hidden, bits = torch.empty_like(weight) if with_hidden else None, some_bits(weight)
    theirs = [None if t is None else t.to(DEVICE, copy=True) for t in (weight, hidden, bits)]
    counts = torch.tensor([100, 1], device=DEVICE)
    flips, nonfinite = reference.nm_split_(weight, hidden, bits, n, m, dim)
    split.nm_split_(*theirs, n, m, dim, counts)
    assert counts.tolist() == [100 + flips, 1 + nonfinite]
    dense = ties(shape, dtype, seed + 1)
    for again in (False, True):
        if again:  # by the mask that is there
            weight.copy_(dense)
            theirs[0].copy_(dense)
            split.resplit_(*theirs, counts)
            assert int(reference.resplit_(weight, hidden, bits)) == 0
            assert counts.tolist() == [100 + flips, 1 + nonfinite]
        assert torch.equal(theirs[0].cpu().view(integers), weight.view(integers))
        assert torch.equal(theirs[2].cpu(), bits)
        if hidden is not None:
            assert torch.equal(theirs[1].cpu().view(integers), hidden.view(integers))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (1, 4), (4, 4), (4, 8), (8, 16), (1, 16), (16, 32), (3, 7)])
def test_every_pattern(n: int, m: int, dtype: torch.dtype) -> None:
    """Linear layers."""
    assert_same((9, 8 * m // (1 + m % 2)), 1, n, m, dtype, True, 4)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (3, 5), (8, 16)])
def test_convolutions(n: int, m: int, dtype: torch.dtype) -> None:
    """Groups whose entries lie apart, and masks that end within a byte."""
    assert_same((5, m, 3, 3), 1, n, m, dtype, True, 4)


@pytest.mark.gpu
@pytest.mark.parametrize("with_hidden", [True, False])
@pytest.mark.parametrize("shape", [(4, 24), (3, 5, 3)])
def test_by_any_mask(shape: tuple[int, ...], with_hidden: bool) -> None:
    """Vector-wise, block and transposable masks are applied, packed and compared in one pass."""
    weight = ties(shape, torch.float32, 0)
    hidden, bits, mask = torch.empty_like(weight) if with_hidden else None, some_bits(weight), torch.rand(shape) < 0.5
    theirs = [None if t is None else t.to(DEVICE, copy=True) for t in (weight, hidden, bits, mask)]
    counts = torch.zeros(2, dtype=torch.int64, device=DEVICE)
    split.split_(*theirs, counts)
    assert counts.tolist() == [int(count) for count in reference.split_(weight, hidden, bits, mask)]
    assert torch.equal(theirs[0].cpu().view(torch.int32), weight.view(torch.int32))
    assert torch.equal(theirs[2].cpu(), bits)
    if hidden is not None:
        assert torch.equal(theirs[1].cpu().view(torch.int32), hidden.view(torch.int32))


@pytest.mark.gpu
def test_every_nonfinite_entry_is_counted() -> None:
    """NaN and infinity, in groups of any kind; their masks mean nothing."""
    weight = torch.ones(4, 16)
    weight[0, :5] = torch.tensor([torch.nan, torch.inf, -torch.inf, -torch.nan, torch.nan])
    weight[3] = torch.nan
    counts = torch.zeros(2, dtype=torch.int64, device=DEVICE)
    for taps, bits in (((), torch.zeros(8)), ((2,), torch.zeros(16))):
        dense = weight[..., None].expand(4, 16, *taps) if taps else weight
        dense = dense.to(DEVICE, copy=True).contiguous()
        split.nm_split_(dense, None, bits.to(DEVICE, torch.uint8), 2, 4, 1, counts)
    assert int(counts[1]) == 3 * 21


@pytest.mark.gpu
def test_channels_last() -> None:
    """Masks lie row by row whatever the memory format."""
    weight = torch.randn(8, 16, 3, 3).contiguous(memory_format=torch.channels_last).to(DEVICE)
    bits = torch.zeros(byte_count(weight.numel()), dtype=torch.uint8, device=DEVICE)
    rows, hidden, expected = weight.contiguous(), torch.empty_like(weight), bits.clone()
    split.nm_split_(weight, hidden, bits, 2, 4, 1, torch.zeros(2, dtype=torch.int64, device=DEVICE))
    removed = torch.empty_like(rows)
    reference.nm_split_(rows, removed, expected, 2, 4, 1)
    assert torch.equal(weight, rows)
    assert torch.equal(hidden, removed)
    assert torch.equal(bits, expected)


def test_nothing_to_split() -> None:
    """An empty weight launches nothing."""
    weight, bits = torch.empty(0, 8, device=DEVICE), torch.empty(0, dtype=torch.uint8, device=DEVICE)
    counts = torch.zeros(2, dtype=torch.int64, device=DEVICE)
    split.nm_split_(weight, weight.clone(), bits, 2, 4, 1, counts)
    split.resplit_(weight, None, bits, counts)
    assert counts.tolist() == [0, 0]


def request(m: int, kind: str) -> Request:
    width = max(8, m)
    signature = {
        "weight_ptr": kind,
        "hidden_ptr": kind,
        "bits_ptr": {8: "*u8", 16: "*i16", 32: "*i32"}[width],
        "counts_ptr": "*i64",
        "units": "i32",
    }
    constants = {"N": m // 2, "M": m, "WIDTH": width, "HIDDEN": True, "BLOCK": split.BLOCK}
    constants["STEPS"] = split.steps(width)
    return Request(split.__name__, signature, constants, 90, split.WARPS, kernel="split_units")


@pytest.fixture(scope="module")
def binaries() -> dict[tuple[int, str], Binary]:
    """By M and type: the machine code."""
    return dict(zip(BUDGET, compiled([request(*made) for made in BUDGET])))


@pytest.mark.parametrize("made", BUDGET, ids=str)
def test_machine_code(binaries, made: tuple[int, str]) -> None:
    """No spills; integer instructions per weight within the budget; only counts cross from thread to thread."""
    binary = binaries[made]
    assert binary.spills == 0
    assert binary.integer(loop=False) / 32 <= BUDGET[made]
    assert binary.shared <= 64
