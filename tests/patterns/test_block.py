"""1xN blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_nm.patterns import Block1xN, parse


def test_a_block_is_n_outputs_of_one_input_with_all_taps() -> None:
    """Lin et al., figure 2: what stays, stays together."""
    torch.manual_seed(0)
    mask = Block1xN(4, 0.5).mask(torch.randn(8, 6, 3, 3))
    blocks = mask.view(2, 4, 6, 9).movedim(1, 2).flatten(2)  # [blocks, inputs, 4 x 9]
    assert torch.equal(blocks.all(2), blocks.any(2))
    assert int(blocks.all(2).sum()) == 6


@pytest.mark.parametrize(
    ("shape", "dim", "rows", "fits"),
    [((8, 3), 1, None, True), ((6, 3), 1, None, False), ((3, 8, 2), 0, None, True), ((8, 3), 1, 2, False)],
)
def test_blocks_must_divide_the_outputs(shape: tuple[int, ...], dim: int, rows: int | None, fits: bool) -> None:
    """Of one GEMM: no block crosses from one group of a grouped convolution into the next."""
    assert (Block1xN(4, 0.5).why_not(shape, dim=dim, rows=rows) is None) is fits


def test_the_reason_gives_the_sizes() -> None:
    """The report repeats it."""
    assert Block1xN(4, 0.5).why_not((6, 3)) == "the 6 outputs of one GEMM are not a multiple of 4"
    with pytest.raises(ValueError, match=r"1x4@0.5 does not fit a weight of shape \(6, 3\): the 6 outputs"):
        Block1xN(4, 0.5).mask(torch.ones(6, 3))


@pytest.mark.parametrize("n", [0, -1, 2.0, "4", True])
def test_n_is_a_whole_number(n: Any) -> None:
    """The message shows what was given."""
    with pytest.raises(ValueError, match="N of a 1xN pattern is a whole number"):
        Block1xN(n, 0.5)


@pytest.mark.parametrize("written", ["1x16@0.75", "1X16@.75", " 1 x 16 @ 0.750 "])
def test_written_form(written: str) -> None:
    """Read back, however it was written."""
    assert parse(written) == Block1xN(16, 0.75)
    assert str(parse(written)) == "1x16@0.75"


def test_written_form_keeps_every_digit() -> None:
    """A budget is not rounded on its way through a config file."""
    pattern = Block1xN(4, 0.7421875123)
    assert parse(str(pattern)) == pattern
