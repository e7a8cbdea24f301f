"""PTX, run on a processor: as much of it as the kernel for sparse tensor cores has, which Triton cannot interpret.

All threads of a program take the same way, as they do there; what they read and write must lie inside what they are
given, and they may exchange nothing but in ``mma.sp``.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.kernels.mma_sp import mma_sp

Lanes = NDArray[Any]
"""A register of all threads: int64 that holds its bits."""
_ORDER = {each: getattr(operator, each) for each in ("lt", "le", "gt", "ge", "eq", "ne")}
_BITWISE = {"and": operator.and_, "or": operator.or_, "xor": operator.xor}
_SPECIAL = re.compile(r"%(tid|ctaid|nctaid|ntid)\.([xyz])")


Arguments = Sequence[NDArray[np.uint8] | int]
"""Bytes in memory, and numbers."""


def run(ptx: str, grid: Sequence[int], threads: int, arguments: Arguments) -> None:
    """The kernel in ``ptx``, program by program."""
    body = re.findall(r"\{\n(.*?)\n\}\n", re.sub(r"//[^\n]*", "", ptx), re.S)[0]
    lines = [line.strip() for line in re.split(r"[;\n]", body)]
    code = [line for line in lines if line and not line.startswith((".", "{", "}"))]
    for z, y, x in product(*(range(size) for size in reversed(grid))):
        _Program(code, grid, (x, y, z), threads, arguments).run()


class _Program:
    """Of a grid."""

    def __init__(
        self, code: list[str], grid: Sequence[int], place: Sequence[int], threads: int, arguments: Arguments
    ) -> None:
        self.code, self.threads, self.arguments = code, threads, arguments
        self.special = {"tid": (np.arange(threads), 0, 0), "ctaid": place, "nctaid": grid, "ntid": (threads, 1, 1)}
        self.registers: dict[str, Lanes] = {}

    def run(self) -> None:
        labels = {line.removesuffix(":"): at for at, line in enumerate(self.code) if line.endswith(":")}
        at = 0
        while at < len(self.code):
            line = self.code[at]
            at += 1
            if line.endswith(":"):
                continue
            guard, opcode, rest = re.fullmatch(r"(?:@(!?%p\d+)\s+)?(\S+)\s*(.*)", line, re.S).groups()  # type: ignore[union-attr]
            active = np.ones(self.threads, bool)
            if guard:
                active = (self.registers[guard.removeprefix("!")] != 0) ^ guard.startswith("!")
            name, *kinds = opcode.split(".")
            if name == "bra":
                assert active.all() or not active.any()
                at = labels[rest] if active.any() else at
            elif name == "ret":
                return
            elif name == "st":
                self.store(rest, kinds, active)
            elif name == "ld" and kinds[0] == "global":
                self.load(rest, kinds, active)
            elif name == "mma":
                self.multiply(rest, kinds)
            elif name != "createpolicy":
                assert active.all()
                to, *of = (each.strip() for each in rest.split(","))
                self.registers[to] = self.compute(name, kinds, of)

    def value(self, written: str, kind: str = "b64") -> Lanes:
        """Of an operand, as an integer of that kind."""
        if found := _SPECIAL.fullmatch(written):
            value = np.asarray(self.special[found[1]]["xyz".index(found[2])])
        elif written.startswith("%"):
            value = self.registers[written]
        else:
            value = np.asarray(int(written[2:], 16) if written.startswith("0f") else int(written, 0))
        bits = 1 if kind == "pred" else int(re.findall(r"\d+", kind)[0])
        value = np.broadcast_to(value, self.threads).astype(np.int64)
        if bits >= 64:
            return value
        value = value & (1 << bits) - 1
        return value - ((value >> bits - 1 & 1) << bits) if kind[0] == "s" else value

    def compute(self, name: str, kinds: list[str], of: list[str]) -> Lanes:
        kind = kinds[-1]
        if name == "ld":  # a parameter
            which = int(re.findall(r"_param_(\d+)", of[0])[0])
            held = self.arguments[which]
            return np.full(self.threads, which + 1 << 32 if isinstance(held, np.ndarray) else held)
        if name == "cvt" and kind == "f32":
            return _rounded(_float(self.value(of[0], "u32"), "f32"), kinds[-2])
        if name == "cvt" and kinds[0] == "f32":
            return _rounded(_float(self.value(of[0], "u16"), kind), "f32")
        if name == "setp":
            a, b = (self.value(each, kind) for each in of)
            return _ORDER[kinds[0]](a, b).astype(np.int64)
        if kind == "f32" and name in ("add", "mul"):
            a, b = (_float(self.value(each, "u32"), "f32") for each in of)
            return _rounded(a + b if name == "add" else a * b, "f32")
        a, *others = (self.value(each, kind) for each in of)
        if name == "mov":
            return a
        if name in _BITWISE:
            return _BITWISE[name](a, others[0])
        if name in ("mad", "mul") and kinds[0] in ("lo", "wide"):
            # what is added to a wide product is as wide
            added = self.value(of[2], kind if kinds[0] == "lo" else "b64") if name == "mad" else 0
            return a * others[0] + added
        integer: dict[str, Callable[..., Lanes]] = {
            "add": operator.add,
            "sub": operator.sub,
            "shl": operator.lshift,
            "shr": operator.rshift,
            "min": np.minimum,
            "max": np.maximum,
            "rem": np.fmod,
            "bfe": lambda a, first, length: a >> first & (1 << length) - 1,
            "not": lambda a: ~a,
        }
        return integer[name](a, *others)

    def place(self, written: str, size: int, active: Lanes) -> tuple[NDArray[np.uint8], Lanes]:
        """Memory, and the bytes in it ``[active threads, size]``."""
        register, offset = re.fullmatch(r"\[\s*(%\w+)\s*(?:\+\s*(-?\d+)\s*)?\]", written.strip()).groups()  # type: ignore[union-attr]
        address = (self.registers[register] + int(offset or 0))[active]
        which = {int(each) for each in address >> 32}
        assert len(which) == 1, "one array at a time"
        held = self.arguments[which.pop() - 1]
        assert isinstance(held, np.ndarray)
        first = address & 0xFFFFFFFF
        assert (first % size == 0).all(), "not aligned"
        assert (first + size <= len(held)).all(), "behind the end"
        return held, first[:, None] + np.arange(size)

    def load(self, rest: str, kinds: list[str], active: Lanes) -> None:
        to, at = re.fullmatch(r"\{?(.*?)\}?,\s*(\[.*?\]).*", rest, re.S).groups()  # type: ignore[union-attr]
        names = [each.strip() for each in to.split(",")]
        width = int(kinds[-1][1:]) // 8
        if not active.any():
            return
        held, places = self.place(at, width * len(names), active)
        words = held[places].view(f"u{width}")
        for i, name in enumerate(names):
            self.registers[name] = self.registers.get(name, np.zeros(self.threads, np.int64)).copy()
            self.registers[name][active] = words[:, i]

    def store(self, rest: str, kinds: list[str], active: Lanes) -> None:
        at, of = re.fullmatch(r"(\[.*?\]),\s*\{?(.*?)\}?", rest, re.S).groups()  # type: ignore[union-attr]
        width = int(kinds[-1][1:]) // 8
        names = [each.strip() for each in of.split(",")]
        if not active.any():
            return
        held, places = self.place(at, width * len(names), active)
        words = np.stack([self.value(name, f"u{8 * width}")[active] for name in names], 1)
        held[places] = words.astype(f"u{width}").view(np.uint8)

    def multiply(self, rest: str, kinds: list[str]) -> None:
        assert kinds[:5] == ["sp::ordered_metadata", "sync", "aligned", "m16n8k32", "row"]
        assert kinds[5:] in (["col", "f32", kind, kind, "f32"] for kind in ("bf16", "f16"))
        fragments = [[each.strip() for each in found.split(",")] for found in re.findall(r"\{(.*?)\}", rest)]
        positions, selector = (each.strip() for each in rest.rsplit("}", 1)[1].strip(" ,").split(","))
        a, b, c = (
            np.stack([self.value(each, "u32") for each in fragment], 1).astype(np.uint32) for fragment in fragments[1:]
        )
        e = self.value(positions, "u32").astype(np.uint32)
        for first in range(0, self.threads, 32):
            warp = slice(first, first + 32)
            sums = mma_sp(a[warp], b[warp], c[warp].view(np.float32), e[warp], int(selector), kinds[7])
            for i, name in enumerate(fragments[0]):
                self.registers.setdefault(name, np.zeros(self.threads, np.int64))
                self.registers[name][warp] = np.ascontiguousarray(sums[:, i]).view(np.uint32)


def _float(bits: Lanes, kind: str) -> NDArray[np.float32]:
    if kind == "f16":
        return bits.astype(np.uint16).view(np.float16).astype(np.float32)
    return (bits << (16 if kind == "bf16" else 0)).astype(np.uint32).view(np.float32)


def _rounded(numbers: NDArray[np.float32], kind: str) -> Lanes:
    """Bits, to the nearest."""
    if kind == "f16":
        return numbers.astype(np.float16).view(np.uint16).astype(np.int64)
    bits = numbers.astype(np.float32).view(np.uint32).astype(np.int64)
    return bits if kind == "f32" else bits + 0x7FFF + (bits >> 16 & 1) >> 16
