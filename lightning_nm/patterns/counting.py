"""How many masks a transposable tile has: binary matrices with given row and column sums, counted one row at a time."""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from math import comb, factorial, lgamma, log, prod

_FEASIBLE = 1_000_000  # column histograms, which are visited in two or three seconds


def log_tile_masks(n: int, m: int, *, at_most: bool = False, exact: bool = True) -> float:
    """Natural logarithm of the number of transposable N:M masks of one M x M tile.

    Args:
        n: kept in every row and column.
        m: rows and columns.
        at_most: rows and columns may keep fewer than ``n``.
        exact: count them (`tile_masks`). False: the formula ``M! (M-1)! ... (M-N+1)!`` of Hubara et al. (arXiv
            2102.08124, mask diversity). It is right for N = 1, too high for most others (144 for 2:4's 90; for 6:12
            and 8:16 more than the rows alone allow, ``C(M, N)^M``) and too low for 2:10 and on. The paper has none
            for ``at_most``: what the rows alone allow takes its place, ``(C(M, 0) + ... + C(M, N))^M``.

    Raises:
        ValueError: not ``0 <= n <= m``, or too many to be counted exactly.

    >>> from math import exp
    >>> round(exp(log_tile_masks(2, 4))), round(exp(log_tile_masks(2, 4, exact=False)))
    (90, 144)
    """
    if exact:
        return log(tile_masks(n, m, at_most=at_most))
    if at_most:
        return m * log(sum(comb(m, kept) for kept in range(n + 1)))
    return sum(lgamma(m - i + 1) for i in range(n))


@cache
def tile_masks(n: int, m: int, *, at_most: bool = False) -> int:
    """Number of M x M binary matrices whose every row and column sums to N (OEIS A008300), or to at most N.

    Rows are added one by one. What comes next depends only on how many columns hold 0, 1, ..., N ones so far, so
    matrices with the same histogram are counted together; the upper and the lower half of a matrix meet in the middle.

    Raises:
        ValueError: not ``0 <= n <= m``, or a count that takes more than a few seconds: every N is feasible up to
            M = 16 (at most N: M = 9), and above it small N and small M - N, such as 4:32.

    >>> tile_masks(2, 4), tile_masks(4, 8), tile_masks(2, 4, at_most=True)
    (90, 116963796250, 7343)
    """
    if not 0 <= n <= m:
        raise ValueError(f"rows and columns of {m} entries cannot keep {n} each")
    most = n if at_most else min(n, m - n)  # what an exact matrix leaves out is one of M - N
    # after each of the M rows there may be all histograms, or, of exact sums, a small share of them
    if comb(m + most, most) * (m if at_most else 1) > _FEASIBLE:
        sums = "at most" if at_most else "exactly"
        raise ValueError(
            f"the masks of a {m} x {m} tile with {sums} {n} of every row and column are too many to be counted; "
            "exact=False gives them by a formula"
        )
    upper = _rows(m // 2, most, m, at_most)
    lower = upper if m % 2 == 0 else _rows(m - m // 2, most, m, at_most)
    if at_most:
        lower = _raised(lower, most)
    # a column that holds c ones in the upper half has room for N - c in the lower one; both halves count every
    # arrangement of their columns, which here is the same one
    arrangements = {histogram: factorial(m) // prod(map(factorial, histogram)) for histogram in upper}
    return sum(ways * lower.get(histogram[::-1], 0) // arrangements[histogram] for histogram, ways in upper.items())


def _rows(rows: int, n: int, m: int, at_most: bool) -> dict[tuple[int, ...], int]:
    """Histogram of column sums ``(columns with 0 ones, ..., with n)`` -> number of ``rows`` x M matrices that have it.

    Every row sums to N (at most N), every column to at most N.
    """
    # a histogram is the digits of one integer, above a digit that counts the ones of the row being made: integers
    # are several times faster to change and to look up than tuples
    bits = m.bit_length()
    digit = (1 << bits) - 1
    states = {m << bits: 1}
    for row in range(rows):
        # from the fullest columns down, so that none gets two ones; no column holds more ones than there are rows
        for level in range(min(row, n - 1), -1, -1):
            at = bits * (level + 1)
            one = (1 << at + bits) - (1 << at) + 1
            after: dict[int, int] = defaultdict(int)
            for state, ways in states.items():
                columns, missing = state >> at & digit, n - (state & digit)
                # the empty columns come last: they take what is missing
                least = missing if level == 0 and not at_most else 0
                for ones in range(least, min(columns, missing) + 1):
                    after[state + ones * one] += ways * comb(columns, ones)
            states = after
        finished: dict[int, int] = defaultdict(int)
        for state, ways in states.items():
            finished[state & ~digit] += ways
        states = finished
    return {tuple(state >> bits * (level + 1) & digit for level in range(n + 1)): w for state, w in states.items()}


def _raised(matrices: dict[tuple[int, ...], int], n: int) -> dict[tuple[int, ...], int]:
    """For column sums to be kept within instead of met: each column's bound is its sum or anything above, up to N."""
    for level in range(n):
        after: dict[tuple[int, ...], int] = defaultdict(int)
        for histogram, ways in matrices.items():
            below, (here, above), beyond = histogram[:level], histogram[level : level + 2], histogram[level + 2 :]
            for up in range(here + 1):
                raised = (*below, here - up, above + up, *beyond)
                after[raised] += ways * comb(here, up)
        matrices = after
    return matrices
