"""The mask kernels in Triton."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from lightning_nm.kernels import reference
from lightning_nm.kernels.bits import byte_count
from lightning_nm.kernels.triton import split
from tests.kernels.triton.ahead_of_time import Binary, Request, compiled
from tests.kernels.triton.device import DEVICE

BUDGET = {4: 29, 8: 36, 16: 60, 32: 110}
"""Integer instructions per weight, by M. A card affords some 42 while it moves a float32 weight, 21 for 16 bits."""


def ties(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Weights with many equal magnitudes and zeros of both signs."""
    torch.manual_seed(seed)
    weight = (torch.randn(shape) * 2).round() / 2
    return torch.where(torch.rand(shape) < 0.1, -0.0, weight).to(dtype)


def assert_same(
    shape: tuple[int, ...], dim: int, n: int, m: int, dtype: torch.dtype, with_hidden: bool, seed: int
) -> None:
    """Weight, hidden part, mask and counts, bit for bit those of the reference; then once more by the mask."""
    weight, integers = ties(shape, dtype, seed), split._INTEGER[dtype]
    if seed % 4 == 0:
        weight.view(-1)[seed % weight.numel()] = torch.inf
    bits = torch.randint(0, 256, (byte_count(weight.numel()),), dtype=torch.uint8)
    if weight.numel() % 8:
        bits[-1] &= (1 << weight.numel() % 8) - 1
    hidden = torch.empty_like(weight) if with_hidden else None
    theirs = [None if t is None else t.to(DEVICE, copy=True) for t in (weight, hidden, bits)]
    expected = [int(count) for count in reference.nm_split_(weight, hidden, bits, n, m, dim)]
    assert [int(count) for count in split.nm_split_(*theirs, n, m, dim)] == expected
    dense = ties(shape, dtype, seed + 1)
    for again in (False, True):
        if again:  # by the mask that is there
            weight.copy_(dense)
            theirs[0].copy_(dense)
            assert int(split.resplit_(*theirs)) == int(reference.resplit_(weight, hidden, bits)) == 0
        assert torch.equal(theirs[0].cpu().view(integers), weight.view(integers))
        assert torch.equal(theirs[2].cpu(), bits)
        if hidden is not None:
            assert torch.equal(theirs[1].cpu().view(integers), hidden.view(integers))


@pytest.mark.gpu
@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (1, 4), (4, 8), (8, 16), (1, 16), (16, 32), (3, 7), (3, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("taps", [(), (3, 3)])
def test_every_pattern(n: int, m: int, dtype: torch.dtype, taps: tuple[int, ...]) -> None:
    """Linear layers and convolutions."""
    assert_same((9, 3 * m, *taps), 1, n, m, dtype, True, 4)


@pytest.mark.gpu
def test_channels_last() -> None:
    """Masks lie row by row whatever the memory format."""
    weight = torch.randn(8, 16, 3, 3).contiguous(memory_format=torch.channels_last).to(DEVICE)
    bits = torch.zeros(byte_count(weight.numel()), dtype=torch.uint8, device=DEVICE)
    rows, hidden, expected = weight.contiguous(), torch.empty_like(weight), bits.clone()
    split.nm_split_(weight, hidden, bits, 2, 4, 1)
    removed = torch.empty_like(rows)
    reference.nm_split_(rows, removed, expected, 2, 4, 1)
    assert torch.equal(weight, rows)
    assert torch.equal(hidden, removed)
    assert torch.equal(bits, expected)


def test_nothing_to_split() -> None:
    """An empty weight launches nothing."""
    weight, bits = torch.empty(0, 8, device=DEVICE), torch.empty(0, dtype=torch.uint8, device=DEVICE)
    assert [int(count) for count in split.nm_split_(weight, weight.clone(), bits, 2, 4, 1)] == [0, 0]
    assert int(split.resplit_(weight, None, bits)) == 0


def test_self_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that equal the reference pass; others, and such as do not run, are named."""
    assert split.self_test(DEVICE) is None
    original = split.nm_split_
    monkeypatch.setattr(split, "nm_split_", lambda *given: original(*given[:3], 1, *given[4:]))
    assert "give other masks than plain torch" in str(split.self_test(DEVICE))
    monkeypatch.setattr(split, "nm_split_", lambda *given: 1 / 0)
    assert "do not run (ZeroDivisionError" in str(split.self_test(DEVICE))


@pytest.fixture(scope="module")
def binaries() -> dict[tuple[int, str], Binary]:
    """By M and type: the machine code."""
    made, requests = [], []
    for m in BUDGET:
        for kind, infinity in (("*i32", 0x7F800000), ("*i16", 0x7F80)):
            signature = {
                "weight_ptr": kind,
                "hidden_ptr": kind,
                "bits_ptr": "*u8",
                "counts_ptr": "*i64",
                "units": "i32",
            }
            constants = {"N": m // 2, "M": m, "WIDTH": max(8, m), "INFINITY": infinity, "HIDDEN": True}
            made.append((m, kind))
            constants["BLOCK"] = split.block(max(8, m))
            requests.append(Request(split.__name__, signature, constants, 90, split.WARPS, kernel="split_units"))
    return dict(zip(made, compiled(requests)))


@pytest.mark.parametrize("kind", ["*i32", "*i16"])
@pytest.mark.parametrize("m", BUDGET)
def test_machine_code(binaries, m: int, kind: str) -> None:
    """No spills; integer instructions per weight within the budget."""
    binary = binaries[m, kind]
    assert binary.spills == 0
    assert binary.integer(loop=False) / (max(8, m) * split.block(max(8, m)) / (32 * split.WARPS)) <= BUDGET[m]
