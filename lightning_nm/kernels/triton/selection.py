"""Which entries of a group are kept, and which of the others are not zeros: in the registers of one thread.

The N-th largest of M falls out of a sorting network, of which the compiler leaves only what leads there: 7 minima and
maxima for 2:4, 25 for 4:8, 85 for 8:16. One comparison with it then decides about an entry; counting for each entry
those that go before it would take M - 1.
"""

from __future__ import annotations

import triton
import triton.language as tl

LARGEST_M = 32
"""Of a group that one thread holds: larger ones take minutes to compile, and spill."""


@triton.jit
def key(entry, AFTER: tl.constexpr):
    """A uint32 that compares as the magnitude does.

    Of 16 bits it also says how many entries come ``AFTER``, so that no two of a group are equal and the first of equal
    ones goes before. Of 32 bits it is twice the magnitude and one more: there is room below to be made less.
    """
    if entry.dtype == tl.int16:
        return (((entry.to(tl.int32) << 16) & 0x7FFF0000) | AFTER).to(tl.uint32, bitcast=True)
    else:  # noqa: RET505 - the compiler wants to see that one of both is left
        return entry.to(tl.uint32, bitcast=True) * 2 + 1


@triton.jit
def decided(entries, FIRST: tl.constexpr, N: tl.constexpr, M: tl.constexpr):
    """For each of M int16 or int32: whether it is kept; then for each: whether it is removed and is not a zero."""
    NARROW: tl.constexpr = entries[0].dtype == tl.int16
    ZERO: tl.constexpr = 65536 if NARROW else 2  # the key of a zero is less
    keys = ()
    for i in tl.static_range(M):
        keys = keys + (key(entries[FIRST + i], M - 1 - i),)
    last = _largest(keys, N, M)
    if not NARROW:
        keys = _without_ties(keys, last, N, M)
    above_zero = tl.maximum(last, ZERO) - ZERO
    kept, removed = (), ()
    for i in tl.static_range(M):
        kept = kept + (keys[i] >= last,)
        removed = removed + (keys[i] - ZERO < above_zero,)  # a zero's difference wraps around
    return kept + removed


@triton.jit
def _without_ties(keys, last, N: tl.constexpr, M: tl.constexpr):
    """Where more than N reach ``last``, those that come last and equal it are made one less."""
    excess = tl.full(last.shape, -N, tl.int32)
    for i in tl.static_range(M):
        excess += (keys[i] >= last).to(tl.int32)
    lessened = ()
    for i in tl.static_range(M):
        less = ((keys[M - 1 - i] == last) & (excess > 0)).to(tl.int32)
        excess -= less
        lessened = (keys[M - 1 - i] - less.to(tl.uint32, bitcast=True),) + lessened
    return lessened


@triton.jit
def _largest(keys, N: tl.constexpr, M: tl.constexpr):
    """The N-th largest of M keys: for every i the lesser of one half's i-th and the other's (N - i)-th; the largest."""
    HALF: tl.constexpr = (M + 1) // 2
    left = _sorted(keys, 0, HALF)
    right = _sorted(keys, HALF, M - HALF)
    found = tl.zeros(keys[0].shape, tl.uint32)
    for i in tl.static_range(N + 1):
        if i <= HALF and N - i <= M - HALF:
            if i == 0:
                found = right[N - 1]
            elif i == N:
                found = tl.maximum(found, left[N - 1])
            else:
                found = tl.maximum(found, tl.minimum(left[i - 1], right[N - i - 1]))
    return found


@triton.jit
def _sorted(keys, FIRST: tl.constexpr, COUNT: tl.constexpr):
    """The largest first: Batcher's merge exchange (Knuth, The Art of Computer Programming 3, algorithm 5.2.2M)."""
    line = ()
    for i in tl.static_range(COUNT):
        line = line + (keys[FIRST + i],)
    for p in tl.static_range(4):
        for k in tl.static_range(p + 1):
            if (1 << p) < COUNT:
                line = _exchanged(line, COUNT, 1 << p, 1 << (p - k))
    return line


@triton.jit
def _exchanged(line, COUNT: tl.constexpr, P: tl.constexpr, K: tl.constexpr):
    """One layer of the network: some entries and those K behind, the larger first."""
    moved = ()
    for i in tl.static_range(COUNT):
        if i >= K % P and (i - K % P) % (2 * K) < K and i + K < COUNT and i // (2 * P) == (i + K) // (2 * P):
            moved = moved + (tl.maximum(line[i], line[i + K]),)
        elif i >= K % P + K and (i - K - K % P) % (2 * K) < K and i // (2 * P) == (i - K) // (2 * P):
            moved = moved + (tl.minimum(line[i], line[i - K]),)
        else:
            moved = moved + (line[i],)
    return moved
