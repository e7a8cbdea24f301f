"""Packed N:M weights come back bit for bit, and multiply as they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_nm import kernels
from lightning_nm.patterns import NM, parse
from lightning_nm.sparse import PackedNM
from tests.helpers import same_bits


def sparse(shape: tuple[int, ...], pattern: NM, dim: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    torch.manual_seed(0)
    weight = torch.randn(shape).to(dtype)
    return torch.where(pattern.mask(weight, dim=dim), weight, 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(
    ("shape", "dim"), [((24, 16), 1), ((16, 24), 0), ((8, 8, 3), 1), ((8, 8, 3, 2), 1), ((8, 16, 3, 3), 0)]
)
@pytest.mark.parametrize("written", ["2:4", "1:8", "3:8", "2:4T", "4:8T,at_most", "2:4V8"])
def test_round_trip(written: str, shape: tuple[int, ...], dim: int, dtype: torch.dtype) -> None:
    """Linear and convolutions, their inputs along either dimension."""
    pattern = parse(written)
    assert isinstance(pattern, NM)
    weight = sparse(shape, pattern, dim, dtype)
    assert same_bits(PackedNM.pack(weight, pattern, dim=dim).unpack(), weight)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 8), st.integers(1, 5), st.integers(1, 20), st.data())
def test_any_weight_comes_back(m: int, groups: int, outputs: int, data: st.DataObject) -> None:
    """With fewer weights than N, and zeros of both signs where they find a place."""
    n = data.draw(st.integers(1, m))
    values, size = st.sampled_from([0.0, -0.0, 1.0, -2.5]), outputs * groups * m
    weight = torch.tensor(data.draw(st.lists(values, min_size=size, max_size=size))).view(outputs, groups * m)
    weight = torch.where(NM(n, m).mask(weight), weight, 0.0)
    assert same_bits(PackedNM.pack(weight, NM(n, m)).unpack(), weight)


def test_negative_zeros_of_a_product_with_the_mask() -> None:
    """Take no weight's place."""
    weight = -torch.rand(16, 32) - 0.1
    product = weight * NM(2, 4).mask(weight)
    assert torch.equal(PackedNM.pack(product, NM(2, 4)).unpack(), product)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("written", ["2:4", "1:4", "3:7", "2:32"])
def test_linear(written: str, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With or without the compiled kernels; any leading dimensions."""
    if not compiled:
        monkeypatch.setattr(kernels, "compiled_cpu", lambda: None)
    pattern = parse(written)
    assert isinstance(pattern, NM)
    weight, bias = sparse((40, 4 * pattern.m), pattern), torch.randn(40)
    x = torch.randn(2, 3, 4 * pattern.m)
    out = PackedNM.pack(weight, pattern).linear(x, bias)
    torch.testing.assert_close(out, torch.nn.functional.linear(x, weight, bias), atol=1e-4, rtol=1e-5)


def test_bytes_of_2_4() -> None:
    """The bar: at most .57 of the dense ones."""
    weight = sparse((256, 256), NM(2, 4))
    assert PackedNM.pack(weight, NM(2, 4)).nbytes <= 0.57 * weight.nbytes


def test_a_weight_that_breaks_its_pattern() -> None:
    """Is not packed; the error names the output and the group."""
    weight = sparse((8, 16), NM(2, 4))
    weight[3, 8:12] = 1.0
    with pytest.raises(ValueError, match=r"\(8, 16\) is not 2:4: group 2 of output 3 holds 4 weights"):
        PackedNM.pack(weight, NM(2, 4))


def test_groups_that_are_too_large() -> None:
    """Positions have eight bits at most, windows two registers."""
    with pytest.raises(ValueError, match="M is at most 32"):
        PackedNM.pack(torch.zeros(4, 64), NM(2, 64))


@pytest.mark.parametrize(
    ("part", "damaged"),
    [
        ("positions", lambda t: t | -1),
        ("positions", lambda t: t.long()),
        ("positions", lambda t: t[:, :, :0]),
        ("values", lambda t: t[:-1]),
        ("values", lambda t: t[..., :8]),
        ("n", lambda n: 3),
        ("m", lambda m: 64),
        ("shape", lambda s: torch.Size([40, 33])),
        ("shape", lambda s: torch.Size([640])),
        ("dim", lambda d: 2),
    ],
)
def test_what_was_damaged_is_refused(part: str, damaged: Any) -> None:
    """Promise 7: a ValueError, never a read beyond the end."""
    packed = PackedNM.pack(sparse((40, 21), NM(2, 7)), NM(2, 7))
    with pytest.raises(ValueError, match="corrupt packed N:M weight"):
        replace(packed, **{part: damaged(getattr(packed, part))})


def test_inputs_that_do_not_fit() -> None:
    """Both sizes are named."""
    with pytest.raises(ValueError, match=r"1 kernel taps and 20 inputs, which x of shape \(3, 20\) has"):
        PackedNM.pack(sparse((8, 16), NM(2, 4)), NM(2, 4)).linear(torch.randn(3, 20))
    with pytest.raises(ValueError, match=r"a bias of shape \(7,\) for 8 outputs"):
        PackedNM.pack(sparse((8, 16), NM(2, 4)), NM(2, 4)).linear(torch.randn(3, 16), torch.randn(7))
