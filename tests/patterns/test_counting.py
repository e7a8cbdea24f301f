"""How many transposable masks there are, against every matrix written down and against published numbers."""

from __future__ import annotations

import time
from itertools import product
from math import comb, exp, factorial, log, prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_nm.patterns.counting import log_tile_masks, tile_masks

SMALL = [(n, m) for m in range(1, 5) for n in range(m + 1)]


def by_enumeration(n: int, m: int, at_most: bool) -> int:
    """Write down all 2^(M*M) matrices."""
    fits = (lambda total: total <= n) if at_most else (lambda total: total == n)
    matrices = product(product((0, 1), repeat=m), repeat=m)
    return sum(all(fits(sum(line)) for line in (*rows, *zip(*rows))) for rows in matrices)


def estimated(n: int, m: int) -> float:
    """Asymptotic log of the count (Canfield and McKay, Electronic Journal of Combinatorics 12, 2005)."""
    return 2 * m * log(comb(m, n)) - log(comb(m * m, m * n)) - 0.5


@pytest.mark.parametrize("at_most", [False, True], ids=["exactly", "at most"])
@pytest.mark.parametrize(("n", "m"), SMALL)
def test_every_small_matrix(n: int, m: int, at_most: bool) -> None:
    """The count is the number of matrices that there are."""
    assert tile_masks(n, m, at_most=at_most) == by_enumeration(n, m, at_most)


@pytest.mark.parametrize(
    ("n", "m", "count"),
    [
        (2, 4, 90),
        (2, 5, 2040),
        (2, 6, 67950),
        (3, 6, 297200),
        (3, 7, 68938800),
        (4, 8, 116963796250),
        (5, 10, 6736218287430460752),
        (4, 12, 65599839591251908982712750),
        (4, 14, 12163525741347497524178307740904300),
    ],
)
def test_published_counts(n: int, m: int, count: int) -> None:
    """OEIS A001499 (N = 2), A001501 (N = 3), A058528 (N = 4) and A058527 (N = M/2)."""
    assert tile_masks(n, m) == count


@pytest.mark.parametrize(("m", "count"), [(1, 2), (2, 7), (3, 34), (4, 209), (5, 1546)])
def test_partial_permutations(m: int, count: int) -> None:
    """At most one of every row and column: OEIS A002720."""
    assert tile_masks(1, m, at_most=True) == count


@settings(deadline=None)
@given(m=st.integers(1, 13), data=st.data())
def test_removed_entries_make_a_mask_too(m: int, data: st.DataObject) -> None:
    """N and M - N have equally many."""
    n = data.draw(st.integers(0, m))
    assert tile_masks(n, m) == tile_masks(m - n, m)


@settings(deadline=None)
@given(m=st.integers(1, 9), data=st.data())
def test_order_of_the_counts(m: int, data: st.DataObject) -> None:
    """Exactly N are some of at most N, these some of those of at most N + 1, and of what rows alone allow."""
    n = data.draw(st.integers(0, m - 1))
    within = tile_masks(n, m, at_most=True)
    assert tile_masks(n, m) <= within < tile_masks(n + 1, m, at_most=True)
    assert tile_masks(n, m) <= comb(m, n) ** m
    assert within <= sum(comb(m, k) for k in range(n + 1)) ** m


@pytest.mark.parametrize("m", [1, 5, 9])
def test_no_bound_at_all(m: int) -> None:
    """At most M of M: every matrix."""
    assert tile_masks(m, m, at_most=True) == 2 ** (m * m)


def test_one_of_m_are_permutations() -> None:
    """Far above M = 16 too."""
    assert tile_masks(1, 128) == factorial(128)


def test_8_16_is_counted_in_seconds() -> None:
    """The widest tile whose best mask is found exactly; the estimate is right to a few percent."""
    begin = time.perf_counter()
    counted = log(tile_masks(8, 16))
    assert time.perf_counter() - begin < 30  # 1.2 seconds on an idle machine
    assert counted == pytest.approx(estimated(8, 16), abs=0.05)
    begin = time.perf_counter()
    tile_masks(8, 16)
    assert time.perf_counter() - begin < 0.01, "counted again"


@pytest.mark.parametrize(
    ("n", "m", "at_most"), [(16, 32, False), (8, 32, False), (8, 16, True), (24, 32, False), (300, 999, False)]
)
def test_too_many_to_be_counted(n: int, m: int, at_most: bool) -> None:
    """A refusal that names the tile and the way out, at once."""
    with pytest.raises(ValueError, match=rf"{m} x {m} tile .*{n} of every row.*exact=False"):
        tile_masks(n, m, at_most=at_most)


@pytest.mark.parametrize(("n", "m"), [(5, 4), (-1, 4), (1, 0)])
def test_no_such_tile(n: int, m: int) -> None:
    """N is between 0 and M."""
    with pytest.raises(ValueError, match=f"{m} entries cannot keep {n}"):
        tile_masks(n, m)


@pytest.mark.parametrize(("n", "m"), [(1, 4), (2, 4), (4, 8), (3, 4), (8, 16)])
def test_the_papers_formula(n: int, m: int) -> None:
    """M! (M-1)! ... (M-N+1)!."""
    assert log_tile_masks(n, m, exact=False) == pytest.approx(log(prod(factorial(m - i) for i in range(n))), rel=1e-12)


@pytest.mark.parametrize(("n", "m"), [(n, m) for m in range(1, 13) for n in range(1, m + 1)])
def test_where_the_papers_formula_is_off(n: int, m: int) -> None:
    """Right for N = 1, too low for N = 2 from M = 10 on, else too high."""
    counted, formula = log_tile_masks(n, m), log_tile_masks(n, m, exact=False)
    if n == 1:
        assert formula == pytest.approx(counted, rel=1e-12)
    else:
        assert (formula < counted) is (n == 2 and m >= 10)


@pytest.mark.parametrize(("n", "m"), [(3, 256), (4, 128), (6, 32), (8, 32), (16, 32), (32, 64), (16, 128)])
def test_the_papers_formula_bounds_what_cannot_be_counted(n: int, m: int) -> None:
    """So the report may mark it as an upper bound."""
    with pytest.raises(ValueError):
        tile_masks(n, m)
    assert estimated(n, m) < log_tile_masks(n, m, exact=False)


def test_figures_of_the_paper() -> None:
    """4:8-T has 1.7e13 masks by its formula."""
    assert exp(log_tile_masks(4, 8, exact=False)) == pytest.approx(1.756e13, rel=1e-3)


@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (4, 8)])
def test_at_most_has_a_bound_of_its_own(n: int, m: int) -> None:
    """The paper's formula counts masks of exactly N, and would be too few: the rows' bound stands in."""
    counted, bound = (log_tile_masks(n, m, at_most=True, exact=exact) for exact in (True, False))
    assert log_tile_masks(n, m, exact=False) < counted < bound
    assert exp(bound) == pytest.approx(sum(comb(m, k) for k in range(n + 1)) ** m)


def test_counts_beyond_floats() -> None:
    """The number of 3:100's masks is no float64; its logarithm is one."""
    with pytest.raises(OverflowError):
        float(tile_masks(3, 100))
    assert log_tile_masks(3, 100) == pytest.approx(log(tile_masks(3, 100)), rel=1e-15)
