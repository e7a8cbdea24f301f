"""What is expected of kernels that nobody has measured."""

from __future__ import annotations

import pytest

from lightning_nm.patterns import NM, Block1xN
from lightning_nm.sparse import prior
from lightning_nm.sparse.backends import BACKENDS

LARGE = 14336 * 4096


@pytest.mark.parametrize(
    ("backend", "pattern", "weights", "rows"),
    [
        ("gathered", NM(2, 4), LARGE, 1),
        ("gathered", NM(1, 8), LARGE, 4),
        ("gathered", NM(1, 16), LARGE, 1),
        ("bitplane", NM(2, 4), LARGE, 64),
        ("bitplane", NM(1, 4), LARGE, 32),
        ("bitplane", NM(2, 8), 4096 * 4096, 16),
        ("sparse_mma", NM(2, 4), LARGE, 64),
        ("vectorwise", Block1xN(32, 0.75), 4096 * 4096, 4096),
        ("vectorwise", NM(1, 4), LARGE, 1),
        ("cusparselt", NM(2, 4), 4096 * 4096, 4096),
        ("cusparselt", NM(2, 4), LARGE, 1024),
    ],
)
def test_where_a_kernel_is_made_for_it(backend: str, pattern: NM | Block1xN, weights: int, rows: int) -> None:
    """It is tried: more than dense is expected."""
    assert prior.expected(backend, pattern, weights, rows) > 1
    assert prior.why_not(backend, pattern, weights, rows) is None


@pytest.mark.parametrize(
    ("backend", "pattern", "weights", "rows"),
    [
        ("gathered", NM(2, 4), LARGE, 64),
        ("gathered", NM(8, 16), LARGE, 16),
        ("bitplane", NM(2, 4), 256 * 256, 16),
        ("vectorwise", Block1xN(32, 0.75), 64 * 64, 16),
        ("cusparselt", NM(2, 4), LARGE, 1),
    ],
)
def test_without_hope(backend: str, pattern: NM | Block1xN, weights: int, rows: int) -> None:
    """It is not tried, and the report says how little was expected."""
    assert "of dense expected, not tried" in str(prior.why_not(backend, pattern, weights, rows))


def test_bounds() -> None:
    """Nothing is expected to beat the bytes that it reads: at most 1 / r, r the packed weight's share of the dense."""
    for n, m, bits in ((2, 4, 2), (1, 4, 2), (2, 8, 3), (1, 8, 3), (1, 16, 4)):
        share = n / m * (1 + bits / 16)
        for backend in ("gathered", "bitplane"):
            for rows in (1, 4, 16, 64):
                assert prior.expected(backend, NM(n, m), 1 << 34, rows) <= 1 / share * 1.01


def test_what_the_model_does_not_know() -> None:
    """Is tried in any case: dense, and what others register."""
    assert prior.expected("dense", NM(2, 4), LARGE, 1) is None
    assert prior.why_not("mine", NM(2, 4), LARGE, 1) is None


def test_every_kernel_for_gpus_is_known() -> None:
    """None is forgotten, and none that is gone."""
    assert set(prior._COSTS) == {name for name, backend in BACKENDS.items() if backend.device == "cuda"}
