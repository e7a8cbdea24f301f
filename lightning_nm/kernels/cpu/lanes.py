"""One vector step of a split, emitted as LLVM vectors through numba.

Sixteen entries lie in sixteen lanes. Magnitudes are compared as the unsigned integers that their
bits are (sign bit off), which orders every finite float of any width, so one code serves fp16,
bf16 and fp32. LLVM lowers the vectors for AVX-512, AVX2 or NEON. The comparison's result *is* the
packed mask: sixteen booleans are two bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

LANES = 16
_I16, _I32, _I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
_KEYS = ir.VectorType(_I32, LANES)


def _constant(values: list[int], element: ir.IntType = _I32) -> ir.Constant:
    return ir.Constant(ir.VectorType(element, LANES), [ir.Constant(element, v) for v in values])


def _keep_largest(builder: Any, key: Any, n: int, m: int) -> Any:
    """<16 x i1>: the entry is among the n largest of its group of m lanes.

    Each rotation within the groups meets every entry with one other. ``other + 1 > key`` is
    ``other >= key``: an other of lower index wins its ties.
    """
    rank: Any = _constant([0] * LANES)
    for turn in range(1, m):
        source = [lane // m * m + (lane + turn) % m for lane in range(LANES)]
        other = builder.shuffle_vector(key, key, _constant(source))
        other = builder.add(other, _constant([int(s < lane) for lane, s in enumerate(source)]))
        rank = builder.add(rank, builder.zext(builder.icmp_unsigned(">", other, key), _KEYS))
    return builder.icmp_unsigned("<", rank, _constant([n] * LANES))


def split_step(width: int, infinity: int, nm: tuple[int, int] | None, with_hidden: bool) -> Callable[..., int]:
    """A numba intrinsic ``step(weight, hidden, bits, start) -> flips | nonfinite << 16``.

    Args:
        width: bits of one entry, 16 or 32.
        infinity: the bits of +inf; magnitudes from there on are infinite or NaN.
        nm: ``(n, m)`` with ``m`` dividing 16 to choose the mask, None to use the one in ``bits``.
        with_hidden: whether the masked part is kept; without, it is dropped.
    """
    entry = ir.IntType(width)
    entries = ir.VectorType(entry, LANES)
    sign = 1 << (width - 1)

    @intrinsic
    def step(typing: Any, weight: Any, hidden: Any, bits: Any, start: Any) -> Any:
        signature = types.int64(weight, hidden, bits, start)

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            def pointer(which: int, index: Any, to: Any) -> Any:
                array = context.make_array(signature.args[which])(context, builder, args[which])
                return builder.bitcast(builder.gep(array.data, [index]), to.as_pointer())

            start = args[3]
            at_weight = pointer(0, start, entries)
            at_bits = pointer(2, builder.lshr(start, ir.Constant(_I64, 3)), _I16)
            raw = builder.load(at_weight, align=width // 8)
            key = raw if width == 32 else builder.zext(raw, _KEYS)
            key = builder.and_(key, _constant([sign - 1] * LANES))
            old = builder.load(at_bits, align=1)
            keep = builder.bitcast(old, ir.VectorType(ir.IntType(1), LANES))
            if nm is not None:
                keep = _keep_largest(builder, key, *nm)
            zero = builder.icmp_unsigned("==", key, _constant([0] * LANES))
            stays = builder.or_(keep, zero)
            builder.store(builder.select(stays, raw, _constant([0] * LANES, entry)), at_weight, align=width // 8)
            if with_hidden:
                removed = builder.select(keep, _constant([sign] * LANES, entry), raw)
                builder.store(removed, pointer(1, start, entries), align=width // 8)
            new = builder.bitcast(keep, _I16)
            builder.store(new, at_bits, align=1)
            wrong = builder.icmp_unsigned(">=", key, _constant([infinity] * LANES))
            flips = builder.zext(builder.ctpop(builder.xor(new, old)), _I64)
            nonfinite = builder.zext(builder.ctpop(builder.bitcast(wrong, _I16)), _I64)
            return builder.or_(flips, builder.shl(nonfinite, ir.Constant(_I64, 16)))

        return signature, codegen

    return step
