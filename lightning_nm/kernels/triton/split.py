"""The mask kernels of `lightning_nm.kernels.reference` in one pass over the weight, bit for bit.

Weights are taken as the integers that their bits are: magnitudes compare alike. Every pair of a group is compared once,
in the registers of one thread. Counts are sums of integers, which come out the same in any order.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_nm.kernels import reference
from lightning_nm.kernels.bits import byte_count, pack_bits, popcount

WARPS = 4
_INTEGER = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
_INFINITY = {torch.float32: 0x7F800000, torch.bfloat16: 0x7F80, torch.float16: 0x7C00}


def block(width: int) -> int:
    """Units, or groups, of a program: a thread has some 32 entries, so that what it does once weighs little."""
    return 32 * WARPS * max(1, 32 // width)


def supports(weight: Tensor) -> bool:
    """Whether there is a kernel for weights of this dtype, and a card (or Triton's interpreter) under this one."""
    there = weight.device.type == "cuda" or not isinstance(split_units, triton.JITFunction)
    return there and weight.dtype in _INTEGER


@triton.jit
def split_units(
    weight_ptr,  # int16 or int32 [units, WIDTH]
    hidden_ptr,
    bits_ptr,  # uint8 [units, WIDTH / 8]
    counts_ptr,  # int64 [2]: entries whose mask changed, entries that are not finite
    units,
    N: tl.constexpr,
    M: tl.constexpr,
    WIDTH: tl.constexpr,
    INFINITY: tl.constexpr,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Units are groups in one piece, or as many small ones as fill a byte of the mask."""
    unit = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    there = unit < units
    at = unit[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]  # [BLOCK, WIDTH]
    entries = _columns(tl.load(weight_ptr + at, mask=there[:, None], other=0), WIDTH, BLOCK)
    keep = ()
    for group in tl.static_range(WIDTH // M):
        keep = keep + _kept(entries, group * M, N, M)
    sparse, hidden = (), ()
    nonfinite = tl.zeros([BLOCK], tl.int32)
    for i in tl.static_range(WIDTH):
        nonfinite += (_magnitude(entries[i]) >= INFINITY).to(tl.int32)
        sparse = sparse + (_sparse(entries[i], keep[i]),)
        hidden = hidden + (_hidden(entries[i], keep[i]),)
    tl.store(weight_ptr + at, _tile(sparse, WIDTH, BLOCK), mask=there[:, None])
    if HIDDEN:
        tl.store(hidden_ptr + at, _tile(hidden, WIDTH, BLOCK), mask=there[:, None])
    flips = tl.zeros([BLOCK], tl.int32)
    for byte in tl.static_range(WIDTH // 8):
        now = tl.zeros([BLOCK], tl.int32)
        for bit in tl.static_range(8):
            now |= keep[byte * 8 + bit].to(tl.int32) << bit
        place = bits_ptr + unit * (WIDTH // 8) + byte
        flips += _ones(now ^ tl.load(place, mask=there, other=0).to(tl.int32))
        tl.store(place, now.to(tl.uint8), mask=there)
    tl.atomic_add(counts_ptr, tl.sum(tl.where(there, flips, 0)).to(tl.int64))
    tl.atomic_add(counts_ptr + 1, tl.sum(nonfinite).to(tl.int64))


@triton.jit
def split_lanes(
    weight_ptr,  # int16 or int32 [groups, M, stride]
    hidden_ptr,
    keep_ptr,  # uint8, like the weight: 1 where kept
    counts_ptr,  # int64 [2]: entries that are not finite in the second
    lanes,
    stride,
    N: tl.constexpr,
    M: tl.constexpr,
    INFINITY: tl.constexpr,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A lane is a group, whose entries lie ``stride`` apart."""
    lane = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    there = lane < lanes
    first = lane // stride * stride * M + lane % stride
    entries = ()
    for i in tl.static_range(M):
        entries = entries + (tl.load(weight_ptr + first + i * stride, mask=there, other=0),)
    keep = _kept(entries, 0, N, M)
    nonfinite = tl.zeros([BLOCK], tl.int32)
    for i in tl.static_range(M):
        at = first + i * stride
        tl.store(weight_ptr + at, _sparse(entries[i], keep[i]), mask=there)
        if HIDDEN:
            tl.store(hidden_ptr + at, _hidden(entries[i], keep[i]), mask=there)
        tl.store(keep_ptr + at, keep[i].to(tl.uint8), mask=there)
        nonfinite += (_magnitude(entries[i]) >= INFINITY).to(tl.int32)
    tl.atomic_add(counts_ptr + 1, tl.sum(nonfinite).to(tl.int64))


@triton.jit
def split_given(
    weight_ptr,  # int16 or int32 [numel]
    hidden_ptr,
    bits_ptr,  # uint8 [numel / 8]
    counts_ptr,
    numel,
    INFINITY: tl.constexpr,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """By the mask that is there."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    there = at < numel
    entry = tl.load(weight_ptr + at, mask=there, other=0)
    keep = (tl.load(bits_ptr + at // 8, mask=there, other=0).to(tl.int32) >> (at % 8).to(tl.int32)) & 1 != 0
    tl.store(weight_ptr + at, _sparse(entry, keep), mask=there)
    if HIDDEN:
        tl.store(hidden_ptr + at, _hidden(entry, keep), mask=there)
    tl.atomic_add(counts_ptr + 1, tl.sum((_magnitude(entry) >= INFINITY).to(tl.int32)).to(tl.int64))


@triton.jit
def _magnitude(entry):
    """An integer that compares as the absolute value does."""
    return entry.to(tl.int32) & (0x7FFFFFFF if entry.dtype == tl.int32 else 0x7FFF)


@triton.jit
def _sparse(entry, keep):
    """0 where not kept; a masked zero keeps its sign."""
    return tl.where(keep | (_magnitude(entry) == 0), entry, 0)


@triton.jit
def _hidden(entry, keep):
    """-0.0 where kept."""
    return tl.where(keep, -2147483648 if entry.dtype == tl.int32 else -32768, entry).to(entry.dtype)


@triton.jit
def _kept(entries, FIRST: tl.constexpr, N: tl.constexpr, M: tl.constexpr):
    """Whether fewer than N entries of the group go before this one; of equal ones the first goes before."""
    sizes = ()
    for i in tl.static_range(M):
        sizes = sizes + (_magnitude(entries[FIRST + i]),)
    keep = ()
    for i in tl.static_range(M):
        before = tl.zeros(sizes[0].shape, tl.int32)
        # the compiler makes one comparison of the two of a pair
        for j in tl.static_range(i):
            before += (sizes[j] >= sizes[i]).to(tl.int32)
        for j in tl.static_range(i + 1, M):
            before += 1 - (sizes[i] >= sizes[j]).to(tl.int32)
        keep = keep + (before < N,)
    return keep


@triton.jit
def _columns(tile, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Of ``[BLOCK, WIDTH]``, one after the other."""
    parts = (tile,)
    for level in tl.static_range(5):
        if WIDTH >> level > 1:
            even, odd = (), ()
            for i in tl.static_range(1 << level):
                a, b = tl.split(tl.reshape(parts[i], [BLOCK, WIDTH >> (level + 1), 2]))
                even = even + (a,)
                odd = odd + (b,)
            parts = even + odd
    columns = ()
    for i in tl.static_range(WIDTH):
        columns = columns + (tl.reshape(parts[i], [BLOCK]),)
    return columns


@triton.jit
def _tile(columns, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """`_columns` backwards."""
    parts = columns
    for level in tl.static_range(5):
        if WIDTH >> level > 1:
            joined = ()
            for i in tl.static_range(WIDTH >> (level + 1)):
                joined = joined + (tl.join(parts[i], parts[i + (WIDTH >> (level + 1))]),)
            parts = joined
    return tl.reshape(parts[0], [BLOCK, WIDTH])


@triton.jit
def _ones(byte):
    """Set bits."""
    byte = byte - ((byte >> 1) & 0x55)
    byte = (byte & 0x33) + ((byte >> 2) & 0x33)
    return (byte + (byte >> 4)) & 0x0F


def nm_split_(weight: Tensor, hidden: Tensor | None, bits: Tensor, n: int, m: int, dim: int) -> tuple[Tensor, Tensor]:
    """`lightning_nm.kernels.reference.nm_split_`."""
    if not weight.numel():  # nothing to launch
        return reference.nm_split_(weight, hidden, bits, n, m, dim)
    rows, removed = _rows(weight), None if hidden is None else _rows(hidden)
    stride = math.prod(weight.shape[dim % weight.dim() + 1 :])
    width = max(8, m)
    counts = torch.zeros(2, dtype=torch.int64, device=weight.device)
    given = {"N": n, "M": m, "INFINITY": _INFINITY[weight.dtype], "HIDDEN": hidden is not None}
    arrays = [_integers(rows), _integers(rows if removed is None else removed)]
    if stride == 1 and m in (2, 4, 8, 16, 32) and weight.numel() % width == 0:
        units, given["BLOCK"] = weight.numel() // width, block(width)
        grid = (triton.cdiv(units, block(width)),)
        split_units[grid](*arrays, bits, counts, units, WIDTH=width, num_warps=WARPS, **given)
        flips = counts[0]
    else:
        lanes, given["BLOCK"] = weight.numel() // m, block(triton.next_power_of_2(m))
        keep = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
        grid = (triton.cdiv(lanes, given["BLOCK"]),)
        split_lanes[grid](*arrays, keep, counts, lanes, stride, num_warps=WARPS, **given)
        packed = pack_bits(keep.bool())
        flips = popcount(packed ^ bits)
        bits.copy_(packed)
    _back(weight, rows, hidden, removed)
    return flips, counts[1]


def resplit_(weight: Tensor, hidden: Tensor | None, bits: Tensor) -> Tensor:
    """`lightning_nm.kernels.reference.resplit_`."""
    if not weight.numel():
        return reference.resplit_(weight, hidden, bits)
    rows, removed = _rows(weight), None if hidden is None else _rows(hidden)
    counts = torch.zeros(2, dtype=torch.int64, device=weight.device)
    arrays = [_integers(rows), _integers(rows if removed is None else removed)]
    given = {"INFINITY": _INFINITY[weight.dtype], "HIDDEN": hidden is not None, "BLOCK": block(1)}
    numel = weight.numel()
    split_given[(triton.cdiv(numel, block(1)),)](*arrays, bits, counts, numel, num_warps=WARPS, **given)
    _back(weight, rows, hidden, removed)
    return counts[1]


def self_test(device: torch.device) -> str | None:
    """Why these kernels are not to be trusted on a device: they were compared with the reference, bit for bit."""
    generator = torch.Generator(device).manual_seed(0)
    for dtype, m, shape in (
        (torch.float32, 4, (64, 96)),
        (torch.bfloat16, 8, (32, 64)),
        (torch.float16, 4, (8, 12, 3)),
    ):
        weight = torch.randn(shape, device=device, generator=generator).mul_(2).round_().div_(2).to(dtype)
        both = [(weight.clone(), torch.empty_like(weight), _no_bits(weight)) for _ in range(2)]
        try:
            counts = nm_split_(*both[0], 2, m, 1), resplit_(*both[0])
        except Exception as error:  # whatever a compiler or a driver may say
            return f"Triton's mask kernels do not run ({type(error).__name__}: {error})"
        expected = reference.nm_split_(*both[1], 2, m, 1), reference.resplit_(*both[1])
        same = all(torch.equal(_integers(a), _integers(b)) for a, b in zip(both[0][:2], both[1][:2]))
        if not same or not torch.equal(both[0][2], both[1][2]) or int(counts[0][0]) != int(expected[0][0]):
            return f"Triton's mask kernels give other masks than plain torch for {dtype}"
    return None


def _no_bits(weight: Tensor) -> Tensor:
    return torch.zeros(byte_count(weight.numel()), dtype=torch.uint8, device=weight.device)


def _rows(tensor: Tensor) -> Tensor:
    """The tensor row by row, as the bits of its mask lie: itself, or a copy (channels_last)."""
    return tensor.detach().contiguous()


def _back(weight: Tensor, rows: Tensor, hidden: Tensor | None, removed: Tensor | None) -> None:
    # the hidden part first: broken off in between, the weight is still whole
    if hidden is not None and removed is not None and removed.data_ptr() != hidden.data_ptr():
        hidden.copy_(removed)
    if rows.data_ptr() != weight.data_ptr():
        weight.copy_(rows)


def _integers(tensor: Tensor) -> Tensor:
    return tensor.view(_INTEGER[tensor.dtype])
