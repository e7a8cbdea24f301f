"""The splits of `lightning_nm.kernels.reference` in one pass over the weight, bit for bit.

A thread holds whole groups, as many as fill a byte of the mask, and moves 16 bytes at once. Counts are sums of
integers, which come out the same in any order. Of some 42 integer instructions that a card affords while it moves a
float32 weight, and 21 for 16 bits, 2:4 takes 18 and 16, 8:16 takes 20 and 18 (tests/kernels/triton/test_split.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_nm.kernels.triton.nm_mask import nm_mask
from lightning_nm.kernels.triton.registers import columns, ones, tile
from lightning_nm.kernels.triton.selection import decided, key

WARPS = 4
BLOCK = 32 * WARPS
_WORDS = {8: torch.uint8, 16: torch.int16, 32: torch.int32}
"""That hold the mask of so many entries."""


def steps(width: int) -> int:
    """Units of a thread, which has 32 entries so that what it does once weighs little."""
    return max(1, 32 // width)


@triton.jit
def split_units(
    weight_ptr,  # [units, WIDTH]
    hidden_ptr,
    bits_ptr,  # uint8, int16 or int32: [units], of WIDTH bits
    counts_ptr,  # int64 [2], added to: entries whose mask changed, entries that are not finite
    units,
    N: tl.constexpr,
    M: tl.constexpr,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
):
    """By its own N:M mask. Units are groups in one piece, or as many small ones as fill a byte of the mask."""
    CHUNK: tl.constexpr = 128 // weight_ptr.dtype.element_ty.primitive_bitwidth
    inside = tl.arange(0, CHUNK)[None, :]
    flips = tl.zeros([BLOCK], tl.int32)
    nonfinite = tl.zeros([BLOCK, CHUNK], tl.float32)
    for s in tl.static_range(STEPS):
        unit = (tl.program_id(0).to(tl.int64) * STEPS + s) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
        there = unit < units
        entries = ()
        for c in tl.static_range(WIDTH // CHUNK):
            at = unit[:, None] * WIDTH + c * CHUNK + inside  # [BLOCK, CHUNK]
            chunk = tl.load(weight_ptr + at, mask=there[:, None], other=0.0)
            nonfinite += _nonfinite(chunk)
            entries = entries + _entries(chunk, CHUNK, BLOCK)
        kept, removed = (), ()
        for g in tl.static_range(WIDTH // M):
            both = decided(entries, g * M, N, M)
            for i in tl.static_range(M):
                kept = kept + (both[i],)
                removed = removed + (both[M + i],)
        for c in tl.static_range(WIDTH // CHUNK):
            at = unit[:, None] * WIDTH + c * CHUNK + inside
            sparse, hidden = _parts(entries, kept, removed, c * CHUNK, CHUNK, BLOCK, weight_ptr.dtype.element_ty)
            tl.store(weight_ptr + at, sparse, mask=there[:, None])
            if HIDDEN:
                tl.store(hidden_ptr + at, hidden, mask=there[:, None])
        word = _word(kept, WIDTH)
        changed = word ^ tl.load(bits_ptr + unit, mask=there, other=0).to(tl.int32)
        if WIDTH < 32:
            changed = changed & ((1 << WIDTH) - 1)  # an int16 brings its sign
        flips += tl.where(there, ones(changed), 0)
        tl.store(bits_ptr + unit, word.to(bits_ptr.dtype.element_ty), mask=there)
    _add(counts_ptr, flips, nonfinite)


@triton.jit
def split_given(
    weight_ptr,  # [numel]
    hidden_ptr,
    bits_ptr,  # uint8 [numel / 8]
    mask_ptr,  # uint8 [numel], or anything without MASK
    counts_ptr,  # int64 [2], added to
    numel,
    MASK: tl.constexpr,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """By a mask, which the bits become, or by the mask that is there."""
    CHUNK: tl.constexpr = 128 // weight_ptr.dtype.element_ty.primitive_bitwidth
    byte = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    there = byte * 8 < numel
    word = tl.load(bits_ptr + byte, mask=there, other=0).to(tl.int32)
    flips = tl.zeros([BLOCK], tl.int32)
    if MASK:
        at = byte[:, None] * 8 + tl.arange(0, 8)[None, :]  # [BLOCK, 8]
        before = word
        word = _word(columns(tl.load(mask_ptr + at, mask=at < numel, other=0).to(tl.int1), 8, BLOCK), 8)
        tl.store(bits_ptr + byte, word.to(tl.uint8), mask=there)
        flips += ones(word ^ before)
    kept = ()
    for i in tl.static_range(8):
        kept = kept + ((word >> i) & 1 != 0,)
    nonfinite = tl.zeros([BLOCK, CHUNK], tl.float32)
    for c in tl.static_range(8 // CHUNK):
        at = byte[:, None] * 8 + c * CHUNK + tl.arange(0, CHUNK)[None, :]  # [BLOCK, CHUNK]
        chunk = tl.load(weight_ptr + at, mask=at < numel, other=0.0)
        nonfinite += _nonfinite(chunk)
        entries = _entries(chunk, CHUNK, BLOCK)
        keep, removed = (), ()
        for i in tl.static_range(CHUNK):
            keep = keep + (kept[c * CHUNK + i],)
            removed = removed + (~keep[i] & (key(entries[i], 0) >= 2),)
        sparse, hidden = _parts(entries, keep, removed, 0, CHUNK, BLOCK, weight_ptr.dtype.element_ty)
        tl.store(weight_ptr + at, sparse, mask=at < numel)
        if HIDDEN:
            tl.store(hidden_ptr + at, hidden, mask=at < numel)
    _add(counts_ptr, flips, nonfinite)


@triton.jit
def _entries(tile, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """The columns of a tile, as integers."""
    INTEGER: tl.constexpr = tl.int16 if tile.dtype.primitive_bitwidth == 16 else tl.int32
    return columns(tile.to(INTEGER, bitcast=True), WIDTH, BLOCK)


@triton.jit
def _parts(entries, kept, removed, FIRST: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, FLOAT: tl.constexpr):
    """(sparse, hidden) of WIDTH entries: -0.0 is hidden where one is kept, and a masked zero keeps its sign in both."""
    NEGATIVE: tl.constexpr = -32768 if FLOAT.primitive_bitwidth == 16 else -2147483648
    sparse, hidden = (), ()
    for i in tl.static_range(FIRST, FIRST + WIDTH):
        sparse = sparse + (tl.where(removed[i], 0, entries[i]).to(FLOAT, bitcast=True),)
        hidden = hidden + (tl.where(kept[i], NEGATIVE, entries[i]).to(entries[i].dtype).to(FLOAT, bitcast=True),)
    return tile(sparse, WIDTH, BLOCK), tile(hidden, WIDTH, BLOCK)


@triton.jit
def _word(kept, WIDTH: tl.constexpr):
    """One bit for each, the first lowest."""
    word = kept[WIDTH - 1].to(tl.int32)
    for i in tl.static_range(1, WIDTH):
        word = word * 2 + kept[WIDTH - 1 - i].to(tl.int32)
    return word


@triton.jit
def _nonfinite(entry):
    """1 where it is NaN or infinite: then it is NaN times 0."""
    return tl.where(entry.to(tl.float32) * 0.0 == 0.0, 0.0, 1.0)


@triton.jit
def _add(counts_ptr, flips, nonfinite):
    """Both in one reduction: a program has less than 65536 entries."""
    counts = tl.sum(flips + tl.sum(nonfinite, 1).to(tl.int32) * 65536)
    tl.atomic_add(counts_ptr, (counts & 65535).to(tl.int64), sem="relaxed")
    if counts >= 65536:
        tl.atomic_add(counts_ptr + 1, (counts >> 16).to(tl.int64), sem="relaxed")


def nm_split_(weight: Tensor, hidden: Tensor | None, bits: Tensor, n: int, m: int, dim: int, counts: Tensor) -> None:
    """`lightning_nm.kernels.reference.nm_split_`; what it counts is added to ``counts``, int64 ``[2]``."""
    width, numel = max(8, m), weight.numel()
    apart = math.prod(weight.shape[dim % weight.dim() + 1 :]) > 1
    whole = width in _WORDS and width % m == 0 and numel % width == 0 and bits.storage_offset() % 4 == 0
    if apart or not whole or not weight.is_contiguous():
        split_(weight, hidden, bits, nm_mask(weight, n, m, dim), counts)
        return
    if not numel:  # nothing to launch
        return
    units, many = numel // width, steps(width)
    constants = {"N": n, "M": m, "WIDTH": width, "HIDDEN": hidden is not None, "BLOCK": BLOCK, "STEPS": many}
    with _row_major(weight, hidden) as (rows, removed):
        grid = (triton.cdiv(units, BLOCK * many),)
        split_units[grid](rows, removed, bits.view(_WORDS[width]), counts, units, num_warps=WARPS, **constants)


def split_(weight: Tensor, hidden: Tensor | None, bits: Tensor, mask: Tensor, counts: Tensor) -> None:
    """`lightning_nm.kernels.reference.split_`; what it counts is added to ``counts``, int64 ``[2]``."""
    _split_given(weight, hidden, bits, mask.contiguous().view(torch.uint8), counts)


def resplit_(weight: Tensor, hidden: Tensor | None, bits: Tensor, counts: Tensor) -> None:
    """`lightning_nm.kernels.reference.resplit_`; what it counts is added to ``counts``, int64 ``[2]``."""
    _split_given(weight, hidden, bits, None, counts)


def _split_given(weight: Tensor, hidden: Tensor | None, bits: Tensor, mask: Tensor | None, counts: Tensor) -> None:
    numel = weight.numel()
    if not numel:  # nothing to launch
        return
    constants = {"MASK": mask is not None, "HIDDEN": hidden is not None, "BLOCK": BLOCK}
    with _row_major(weight, hidden) as (rows, removed):
        grid = (triton.cdiv(numel, 8 * BLOCK),)
        given = bits if mask is None else mask
        split_given[grid](rows, removed, bits, given, counts, numel, num_warps=WARPS, **constants)


@contextmanager
def _row_major(weight: Tensor, hidden: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Both row by row, as the bits of the mask lie: themselves, or copies that are written back (channels_last)."""
    rows = weight.contiguous()
    removed = rows if hidden is None else hidden if hidden.is_contiguous() else torch.empty_like(rows)
    yield rows, removed
    # the hidden part first: broken off in between, the weight is still whole
    if hidden is not None and removed is not hidden:
        hidden.copy_(removed)
    if rows is not weight:
        weight.copy_(rows)
