"""The layout of weights whose outputs share their inputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_nm.kernels.vectorwise_nm import ROWS, best_block, fits, matmul, pack, unpack
from lightning_nm.patterns import NM, Block1xN

PATTERNS = [NM(1, 4, vector=64), NM(2, 4, vector=128), NM(1, 16, vector=32), Block1xN(32, 0.75)]


def shared(outputs: int, inputs: int, pattern: NM | Block1xN, dtype: torch.dtype) -> Tensor:
    torch.manual_seed(0)
    rows = torch.randn(outputs, inputs).to(dtype)
    return torch.where(pattern.mask(rows), rows, 0.0)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("block", ROWS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_round_trip(pattern: NM | Block1xN, block: int, dtype: torch.dtype) -> None:
    """Bit for bit, and the plain product of it; blocks that do not fit the pattern store more."""
    rows = shared(256, 304, pattern, dtype)
    values, inputs = pack(rows, block)
    assert values.is_contiguous()
    assert inputs.is_contiguous()  # kernels read them as they lie
    assert values.shape[1] == inputs.shape[1]
    assert values.shape[1] % 64 == 0
    assert torch.equal(unpack(values, inputs, (256, 304)).view(torch.int16), rows.view(torch.int16))
    x = torch.randn(2, 304).to(dtype)
    assert torch.equal(matmul(x, values, inputs, None, 256), x @ rows.T)


@pytest.mark.parametrize(("outputs", "inputs"), [(70, 64), (1, 5), (129, 100)])
def test_ragged_sizes(outputs: int, inputs: int) -> None:
    """Of outputs that make up no whole blocks, and of inputs fewer than a step; zero rows and columns."""
    torch.manual_seed(0)
    rows = torch.randn(outputs, inputs) * (torch.rand(inputs) < 0.5)
    rows[outputs // 2] = 0
    for block in ROWS:
        values, inputs_kept = pack(rows, block)
        assert len(values) == len(inputs_kept) * block
        assert torch.equal(unpack(values, inputs_kept, (outputs, inputs)), rows)


def test_zeros_that_are_stored_are_those_of_the_weight() -> None:
    """Entries that fill up are zero, whatever input 0 holds."""
    rows = torch.zeros(64, 128)
    rows[:, 0], rows[:, 5] = 7.0, 3.0
    values, inputs = pack(rows, 64)
    assert values.shape == (64, 64)
    assert values.sum() == rows.sum()
    assert inputs[0, :3].tolist() == [0, 5, 0]


def test_blocks_straddle_no_groups() -> None:
    """Of a convolution: a smaller block is best where larger ones, that store as much, would."""
    rows = shared(256, 64, NM(1, 4, vector=128), torch.bfloat16)
    assert [best_block(rows, groups)[0] for groups in (1, 2, 4, 8)] == [128, 128, 64, 32]
    assert fits(128, 70, 1)
    assert not fits(32, 256, 16)


def test_best_block() -> None:
    """The largest one that stores the least; where outputs share nothing there is nothing to gain."""
    for vector, expected in ((256, 128), (128, 128), (64, 64), (32, 32)):
        rows = shared(256, 1024, NM(1, 4, vector=vector), torch.bfloat16)
        assert best_block(rows) == (expected, 0.25)
    assert best_block(shared(256, 1024, NM(1, 4), torch.bfloat16))[1] > 0.9
