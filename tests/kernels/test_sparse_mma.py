"""The layout for sparse tensor cores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_nm.kernels.sparse_mma import matmul, ordered, pack, tiles, unpack
from tests.kernels.mma_sp import mma_sp
from tests.kernels.test_gathered_nm import sparse

KINDS = {torch.bfloat16: "bf16", torch.float16: "f16"}


@pytest.mark.parametrize(("outputs", "inputs"), [(5, 148), (1, 4), (32, 128), (70, 512)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_round_trip(outputs: int, inputs: int, dtype: torch.dtype) -> None:
    """Bit for bit, and the plain product of it."""
    rows, mask = sparse(outputs, inputs, 2, 4, dtype)
    values, positions = pack(rows, mask)
    assert values.is_contiguous()
    assert positions.is_contiguous()  # kernels read them as they lie
    again = unpack(values, positions, (outputs, inputs), dtype)
    assert torch.equal(again.view(torch.int16), rows.view(torch.int16))
    x = torch.randn(2, inputs).to(dtype)
    assert torch.equal(matmul(x, values, positions, None, outputs), x @ rows.T)


def test_bytes() -> None:
    """Nine sixteenths of the dense weight."""
    values, positions = pack(*sparse(64, 256, 2, 4, torch.bfloat16))
    assert values.dtype == positions.dtype == torch.int32
    assert 4 * (values.numel() + positions.numel()) == 2 * 64 * 256 * 9 // 16


@pytest.mark.parametrize(("outputs", "inputs", "batch", "columns"), [(32, 128, 8, 8), (70, 300, 12, 16), (1, 4, 1, 8)])
@pytest.mark.parametrize("dtype", list(KINDS))
def test_every_lane_finds_its_registers(
    outputs: int, inputs: int, batch: int, columns: int, dtype: torch.dtype
) -> None:
    """The instruction, as NVIDIA describes it, makes the product of what lies at each lane's place."""
    rows, mask = sparse(outputs, inputs, 2, 4, dtype)
    x = torch.randn(batch, inputs).to(dtype)
    values, positions = (unsigned(each) for each in pack(rows, mask))
    lanes = unsigned(ordered(x, columns))
    high, wide = tiles(outputs, inputs)
    assert values.shape[:2] == positions.shape[:2] == (high, wide)
    out = np.zeros((8 * len(lanes), 32 * high), np.float32)
    lane, i = np.arange(32)[:, None], np.arange(4)[None, :]
    for tile in range(high):
        for half in range(2):
            for block in range(len(lanes)):
                sums = np.zeros((32, 4), np.float32)
                for at in range(wide):
                    for step in range(4):
                        registers = values[tile, at, step, half], lanes[block, at, step], sums
                        sums = mma_sp(*registers, positions[tile, at, :, step], half, KINDS[dtype])
                out[8 * block + lane % 4 * 2 + i % 2, 32 * tile + 16 * half + lane // 4 + i // 2 * 8] = sums
    exact = x.double() @ rows.double().T
    torch.testing.assert_close(torch.from_numpy(out).double()[:batch, :outputs], exact, atol=1e-4, rtol=1e-4)


def test_positions_are_those_of_cutlass() -> None:
    """Whose layout torch's own converter makes: four steps of ours lie where four of its columns are."""
    conversions = pytest.importorskip("torch.sparse._semi_structured_conversions")
    rows, mask = sparse(96, 256, 2, 4, torch.float16)
    _, reordered = conversions.sparse_semi_structured_from_dense_cutlass(rows)
    # [steps, tiles, lanes]
    theirs = reordered.view(-1).view(torch.int32).view(256 // 32, 96 // 32, 32)
    ours = pack(rows, mask)[1]
    assert torch.equal(ours, theirs.view(2, 4, 3, 32).permute(2, 0, 3, 1))


def unsigned(words: Tensor) -> np.ndarray:
    return words.numpy().view(np.uint32)
