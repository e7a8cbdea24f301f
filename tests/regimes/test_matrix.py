"""The README's support matrix is the tests'."""

from __future__ import annotations

from tests.regimes import matrix


def test_readme_says_what_the_tests_show():
    """If this fails: python -m tests.regimes.matrix --write"""
    assert matrix.README.read_text() == matrix.in_readme()
