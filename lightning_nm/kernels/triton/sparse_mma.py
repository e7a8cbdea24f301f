"""x @ W^T of a 2:4 weight on sparse tensor cores: nothing is decoded, and of the weight only packed bytes are read.

Every lane loads its own registers, as `lightning_nm.kernels.sparse_mma` lays them out, and hands them to ``mma.sp``
through Gluon's inline assembly: no shared memory, no barriers, no exchange between lanes. At most 0.2 integer
instructions per dense weight, and 0.8 to 1.4 of all kinds with 8 to 64 rows of x, where Hopper affords 6.9 and 13.8
while dense weights stream (tests/kernels/triton/test_sparse_mma.py): so memory should be the limit.

Which elements of a tensor one block of inline assembly receives is not specified by Triton. The layout below leaves it
no choice, but `self_test` asks the card: nobody may call `matmul` where that finds a fault.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from lightning_nm.kernels import sparse_mma
from lightning_nm.kernels.sparse_mma import COLUMNS, INPUTS, ordered
from lightning_nm.kernels.triton.finish import finish

_TYPES = {torch.bfloat16: "bf16", torch.float16: "f16"}


@gluon.jit(do_not_specialize=["outputs", "batch", "high", "wide"])  # else they would make more kernels than are tested
def kernel(
    x_ptr,  # [batch / 8 and more, wide, 4 steps, 32 lanes, 4], int32; without ORDERED [batch, wide, 64]
    values_ptr,  # [high, wide, 4 steps, 2 halves, 32 lanes, 4], int32
    positions_ptr,  # [high, wide, 32 lanes, 4], int32
    bias_ptr,  # [outputs], or anything without HAS_BIAS
    out_ptr,  # [programs of a tile, batch, outputs], 16 bits, or float32
    outputs,
    batch,
    high,
    wide,
    TYPE: gl.constexpr,
    BLOCKS: gl.constexpr,
    ORDERED: gl.constexpr,
    HAS_BIAS: gl.constexpr,
    WARPS: gl.constexpr,
):
    # a row is a thread: it holds the four elements of its row, and nobody else does
    OWN: gl.constexpr = gl.BlockedLayout([1, 4], [32, 1], [WARPS, 1], [1, 0])
    thread = gl.arange(0, 32 * WARPS, gl.SliceLayout(1, OWN))[:, None]
    word = gl.arange(0, 4, gl.SliceLayout(0, OWN))[None, :]
    lane = thread % 32
    own = lane * 4 + word  # [32 WARPS, 4], like everything from here on
    tile = gl.program_id(0) * WARPS + thread // 32
    split = gl.program_id(2)
    splits = gl.num_programs(2)
    first = gl.minimum(tile, high - 1).to(gl.int64) * wide  # behind the last tile: that again, but it is not stored
    values = values_ptr + first * 1024 + own
    positions = positions_ptr + first * 128 + own
    if ORDERED:
        x = x_ptr + gl.program_id(1) * (BLOCKS * wide * 512) + own
    else:
        x = x_ptr + gl.minimum(lane // 4, batch - 1) * (wide * 64) + lane % 4 + word * 4
    sums = ()
    for _ in gl.static_range(2 * BLOCKS):
        sums = sums + (gl.zeros([32 * WARPS, 4], gl.float32, OWN),)
    at = split
    weights = _loaded(values, positions, at)
    for following in range(split + splits, wide, splits):
        # the compiler would delay loads until they are needed, if that were in the same turn of the loop
        ahead = _loaded(values, positions, following)
        sums = _added(sums, weights, x, at, wide, TYPE, BLOCKS, ORDERED)
        weights = ahead
        at = following
    sums = _added(sums, weights, x, at, wide, TYPE, BLOCKS, ORDERED)
    for block in gl.static_range(BLOCKS):
        for half in gl.static_range(2):
            total = sums[2 * block + half]
            row = tile * 32 + half * 16 + lane // 4 + word // 2 * 8
            column = (gl.program_id(1) * BLOCKS + block) * 8 + lane % 4 * 2 + word % 2
            if HAS_BIAS:
                total += gl.load(bias_ptr + row, mask=row < outputs, other=0.0).to(gl.float32)
            place = (split * batch + column).to(gl.int64) * outputs + row
            gl.store(out_ptr + place, total.to(out_ptr.dtype.element_ty), mask=(row < outputs) & (column < batch))


@gluon.jit
def _loaded(values, positions, at):
    """Of one tile: the positions, and of each step and half the values."""
    loaded = (gl.load(positions + at * 128, eviction_policy="evict_first"),)
    for i in gl.static_range(8):
        loaded = loaded + (gl.load(values + at * 1024 + i * 128, eviction_policy="evict_first"),)
    return loaded


@gluon.jit
def _added(sums, weights, x, at, wide, TYPE: gl.constexpr, BLOCKS: gl.constexpr, ORDERED: gl.constexpr):
    """The products of one tile, of each block of 8 rows of x and each half."""
    for step in gl.static_range(4):
        added = ()
        for block in gl.static_range(BLOCKS):
            if ORDERED:
                inputs = gl.load(x + (block * wide + at) * 512 + step * 128)
            else:
                inputs = gl.load(x + at * 64 + step * 16)
            for half in gl.static_range(2):
                added = added + (
                    _mma(weights[1 + 2 * step + half], inputs, sums[2 * block + half], weights[0], step, half, TYPE),
                )
        sums = added
    return sums


@gluon.jit
def _mma(values, x, sums, positions, STEP: gl.constexpr, HALF: gl.constexpr, TYPE: gl.constexpr):
    """Sums and the product of a half by 8 rows of x."""
    return gl.inline_asm_elementwise(
        f"mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.{TYPE}.{TYPE}.f32 "
        f"{{$0, $1, $2, $3}}, {{$4, $5, $6, $7}}, {{$8, $9, $10, $11}}, {{$12, $13, $14, $15}}, ${16 + STEP}, {HALF};",
        "=f,=f,=f,=f,r,r,r,r,r,r,r,r,f,f,f,f,r,r,r,r",
        [values, x, sums, positions],
        dtype=gl.float32,
        is_pure=True,
        pack=4,
    )


class Share(NamedTuple):
    """What one program does: chosen by machine code, not yet by measurement."""

    blocks: int
    """Of 8 rows of x."""
    warps: int
    """That take one tile of the weight each; what is read of x falls with those that share it."""
    programs: int
    """That fill a card: where there are fewer, several share the inputs of their outputs."""

    @staticmethod
    def of(batch: int) -> Share:
        return next((share for share in _SHARES if batch <= COLUMNS * share.blocks), _SHARES[-1])


_SHARES = (Share(1, 4, 528), Share(2, 4, 396), Share(4, 8, 264), Share(8, 8, 132))


def matmul(
    x: Tensor, values: Tensor, positions: Tensor, bias: Tensor | None, outputs: int, activation: str = "none"
) -> Tensor:
    """`lightning_nm.kernels.sparse_mma.matmul`, summed in float32."""
    share, (high, wide) = Share.of(len(x)), values.shape[:2]
    programs = -(-high // share.warps) * -(-len(x) // (share.blocks * COLUMNS))
    parts = max(1, min(wide, share.programs // programs))
    return product(x, values, positions, bias, outputs, parts, activation)


def product(
    x: Tensor,
    values: Tensor,
    positions: Tensor,
    bias: Tensor | None,
    outputs: int,
    parts: int,
    activation: str = "none",
) -> Tensor:
    """`matmul`.

    Args:
        parts: in which the inputs are taken, by as many programs; at most their tiles.
    """
    batch, (high, wide), dtype = len(x), values.shape[:2], x.dtype
    blocks, warps, _ = Share.of(batch)
    # eight rows may stay as they are; to put more in order pays
    in_order = blocks > 1 or x.shape[1] % INPUTS != 0 or not x.is_contiguous() or x.data_ptr() % 4 != 0
    taken = ordered(x, blocks * COLUMNS) if in_order else x.view(torch.int32)
    whole = parts == 1 and activation == "none"  # Gluon shares no functions with Triton: `finish` activates
    out = torch.empty(parts, batch, outputs, dtype=dtype if whole else torch.float32, device=x.device)
    fused = bias if whole else None
    kernel[(-(-high // warps), -(-batch // (blocks * COLUMNS)), parts)](
        taken,
        values,
        positions,
        values if fused is None else fused,
        out,
        outputs,
        batch,
        high,
        wide,
        TYPE=_TYPES[dtype],
        BLOCKS=blocks,
        ORDERED=in_order,
        HAS_BIAS=fused is not None,
        WARPS=warps,
        num_warps=warps,
    )
    return out[0] if whole else finish(out, bias, outputs, dtype, activation)


def self_test(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this kernel is not to be trusted on a device: its products were compared with exact ones."""
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype, device=device, generator=generator)

    # all shares, both ways to read x, tiles that are not full, one turn of the loop and more, with parts and without
    for outputs, inputs, batch, parts in (
        (160, 640, 5, 2),
        (33, 588, 3, 1),
        (130, 256, 12, 1),
        (40, 512, 29, 2),
        (40, 384, 70, 2),
    ):
        rows, x, bias = random(outputs, inputs), random(batch, inputs), random(outputs)
        mask = torch.rand(outputs, inputs // 4, 4, device=device, generator=generator).argsort(2) < 2
        rows = torch.where(mask.flatten(1), rows, 0.0)
        packed = sparse_mma.pack(rows, mask.flatten(1))
        try:
            out = product(x, *packed, bias, outputs, parts)
        except Exception as error:  # whatever a compiler or a driver may say
            return f"sparse tensor cores do not run ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
        wide = x.double(), rows.double(), bias.double()
        exact = wide[0] @ wide[1].T + wide[2]
        size = wide[0].abs() @ wide[1].abs().T + wide[2].abs()
        allowed = 2 * torch.finfo(dtype).eps * exact.abs() + 1e-4 * size
        if not bool(((out.double() - exact).abs() <= allowed).all()):
            return f"sparse tensor cores disagree with dense at {batch} x [{outputs}, {inputs}] {dtype}"
    return None
