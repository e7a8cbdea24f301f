"""Tiles whose rows lie in the registers of one thread each, taken apart by columns and put together again."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def columns(tile, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Of ``[BLOCK, WIDTH]``, one after the other. Up to 16 bytes wide nothing is exchanged between threads."""
    parts = (tile,)
    for level in tl.static_range(3):
        if WIDTH >> level > 1:
            even, odd = (), ()
            for i in tl.static_range(1 << level):
                a, b = tl.split(tl.reshape(parts[i], [BLOCK, WIDTH >> (level + 1), 2]))
                even = even + (a,)
                odd = odd + (b,)
            parts = even + odd
    apart = ()
    for i in tl.static_range(WIDTH):
        apart = apart + (tl.reshape(parts[i], [BLOCK]),)
    return apart


@triton.jit
def tile(columns, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """`columns` backwards."""
    parts = columns
    for level in tl.static_range(3):
        if WIDTH >> level > 1:
            joined = ()
            for i in tl.static_range(WIDTH >> (level + 1)):
                joined = joined + (tl.join(parts[i], parts[i + (WIDTH >> (level + 1))]),)
            parts = joined
    return tl.reshape(parts[0], [BLOCK, WIDTH])


@triton.jit
def ones(word):
    """Set bits of an int32."""
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    return (((word + (word >> 4)) & 0x0F0F0F0F) * 0x01010101) >> 24
