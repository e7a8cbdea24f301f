"""Backends side by side."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_nm import kernels
from lightning_nm.kernels.convolution import Convolution
from lightning_nm.patterns import NM, Block1xN
from lightning_nm.sparse import BACKENDS
from lightning_nm.sparse.backends import Dense, DenseOperand
from lightning_nm.sparse.choice import DENSE
from lightning_nm.sparse.comparison import compare

ALL = {"dense", "onednn", "cpu"}


def masked(pattern: NM | Block1xN, *shape: int, dim: int = 1) -> Tensor:
    dense = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return torch.where(pattern.mask(dense, dim=dim), dense, 0.0)


def linear(**others: Any):
    return compare(masked(NM(2, 4), 48, 64), NM(2, 4), 1, torch.randn(3, 64), torch.randn(48), seconds=0.0, **others)


@pytest.mark.parametrize("pattern", [NM(2, 4), NM(1, 8), Block1xN(16, 0.5)])
@pytest.mark.parametrize("dim", [0, 1])
def test_linear_weights(pattern, dim):
    """Along either dimension: all are right, and "auto" took one of them."""
    compared = compare(masked(pattern, 64, 64, dim=dim), pattern, dim, torch.randn(3, 64), torch.randn(64), seconds=0.0)
    assert compared.times.keys() == ALL
    assert not compared.wrong
    assert not compared.refusals
    assert compared.auto is not None
    assert compared.auto.backend in ALL


@pytest.mark.parametrize("pattern", [NM(2, 4), Block1xN(16, 0.5)])
def test_convolutions(pattern):
    """With a stride, channels last."""
    x = torch.randn(2, 16, 9, 9).contiguous(memory_format=torch.channels_last)
    convolution = Convolution((3, 3), (2, 2), (1, 1), (1, 1), 1)
    compared = compare(masked(pattern, 32, 16, 3, 3), pattern, 1, x, None, convolution, seconds=0.0)
    assert compared.times.keys() == ALL
    assert not compared.wrong


def test_bfloat16():
    """Prepacked weights are float32: that one refuses, the others are right to bfloat16's precision."""
    weight, x = masked(NM(2, 4), 48, 64).bfloat16(), torch.randn(3, 64).bfloat16()
    compared = compare(weight, NM(2, 4), 1, x, torch.randn(48).bfloat16(), seconds=0.0)
    assert compared.times.keys() == {"dense", "cpu"}
    assert compared.refusals == {"onednn": "prepacked weights are float32"}
    assert not compared.wrong


def test_without_numba(monkeypatch):
    """The CPU backend says why it cannot; no sparse result, no ratio; "auto" is a dense one."""
    monkeypatch.setattr(kernels, "compiled_cpu", lambda: None)
    compared = linear()
    assert compared.refusals == {"cpu": "numba is not there or does not import, and so there are no compiled kernels"}
    assert compared.fastest is None
    assert compared.over("dense") is None
    assert compared.auto.backend in DENSE


class Off(DenseOperand):
    """One of all the products of one number is left out."""

    def linear(self, x, bias):
        out = super().linear(x, bias).clone()
        out[1, 5] -= x[1, 0] * self.weight[5].abs().max()
        return out


class OddOne(Dense):
    name = "odd"
    operand: Any = Off

    def hold(self, weight, pattern, dim):
        return self.operand(weight, dim)


def test_a_wrong_number_is_found(monkeypatch):
    """A single one among many; that backend is not timed, the others are, and "auto" avoids it."""
    monkeypatch.setitem(BACKENDS, "odd", OddOne())
    compared = linear()
    assert compared.wrong == {"odd": "1 of 144 numbers are wrong"}
    assert compared.times.keys() == ALL
    assert compared.auto.backend != "odd"


def test_a_result_that_is_not_a_number_or_of_another_shape_is_found(monkeypatch):
    """NaN everywhere; transposed."""
    monkeypatch.setitem(BACKENDS, "odd", OddOne())
    monkeypatch.setattr(Off, "linear", lambda self, x, bias: torch.full((3, 48), torch.nan))
    assert linear().wrong == {"odd": "144 of 144 numbers are wrong"}
    monkeypatch.setattr(Off, "linear", lambda self, x, bias: torch.zeros(48, 3))
    assert linear().wrong == {"odd": "torch.float32 of shape [48, 3], not torch.float32 of [3, 48]"}


def test_a_backend_that_breaks_down_is_told(monkeypatch):
    """With the error; the others are timed."""

    def fail(self, x, bias):
        raise RuntimeError("out of\nluck")

    monkeypatch.setitem(BACKENDS, "odd", OddOne())
    monkeypatch.setattr(Off, "linear", fail)
    compared = linear()
    assert compared.wrong == {"odd": "RuntimeError: out of luck"}
    assert compared.auto is None
    assert compared.times.keys() == ALL


def test_ratios():
    """The fastest sparse backend over one dense backend, and over the better of both."""
    compared = linear()
    cpu = compared.times["cpu"].median
    assert compared.fastest == "cpu"
    assert compared.over("dense") == compared.times["dense"].median / cpu
    assert compared.over(*DENSE) == min(compared.times[name].median for name in DENSE) / cpu
