"""Patterns as people write them: ``"2:4"``, ``[2, 4]``, and what YAML makes of an unquoted 2:4."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lightning_nm.patterns.base import Pattern
from lightning_nm.patterns.block import Block1xN
from lightning_nm.patterns.filter import Filter
from lightning_nm.patterns.nm import NM
from lightning_nm.patterns.unstructured import Unstructured

_NUMBER = r"((?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
_BLOCK = re.compile(rf"\s*1\s*x\s*(\d+)\s*@\s*{_NUMBER}\s*", re.IGNORECASE)
_LAYER = re.compile(rf"\s*(unstructured|filter)\s*@\s*{_NUMBER}\s*", re.IGNORECASE)
_NM = re.compile(r"\s*(\d+)\s*:\s*(\d+)\s*(?:([tT])|[vV](\d+))?\s*((?:,\s*\w+\s*)*)")


def parse(written: str | int | Sequence[int] | Pattern) -> Pattern:
    """Read a pattern.

    Accepts ``"N:M"``, ``"N:MT"`` (transposable; ``"N:MT,at_most"`` and a solver's name behind another comma),
    ``"N:MVk"`` (an index shared by k outputs), ``"1xN@sparsity"``, ``"unstructured@sparsity"``, ``"filter@sparsity"``,
    a pair ``[N, M]``, a `Pattern` (returned as it is), and an integer: YAML 1.1 reads an unquoted ``2:4`` as the
    base-60 number 124, which is decoded again.

    >>> [str(parse(written)) for written in ("2:4", [1, 16], 124, "4:8T", "4:8T,at_most,fast", "2:4V16", "1x16@.75")]
    ['2:4', '1:16', '2:4', '4:8T', '4:8T,at_most,fast', '2:4V16', '1x16@0.75']

    Raises:
        ValueError: nothing that can be read as a pattern, or not ``0 < N <= M``.
    """
    if isinstance(written, Pattern):
        return written
    if isinstance(written, int) and not isinstance(written, bool) and written >= 60:
        return NM(*divmod(written, 60))
    if isinstance(written, str) and (match := _NM.fullmatch(written)):
        return _nm(match)
    if isinstance(written, str) and (match := _BLOCK.fullmatch(written)):
        return Block1xN(int(match[1]), float(match[2]))
    if isinstance(written, str) and (match := _LAYER.fullmatch(written)):
        return {"unstructured": Unstructured, "filter": Filter}[match[1].lower()](float(match[2]))
    if isinstance(written, (list, tuple)) and [type(v) for v in written] == [int, int]:
        return NM(*written)
    raise ValueError(
        f"{written!r} is not a sparsity pattern; write 'N:M' with N kept of every M weights, for example '2:4', "
        "'2:4T' for transposable masks, '2:4V16' for an index shared by 16 outputs, '1x16@0.75' for 1xN blocks, "
        "'unstructured@0.9' or 'filter@0.5'"
    )


def _nm(match: re.Match[str]) -> NM:
    options = [option.strip().lower() for option in match[5].split(",")[1:]]
    solvers = [option for option in options if option != "at_most"]
    if len(solvers) > 1:
        raise ValueError(f"{match[0]!r} names more than one solver: {', '.join(solvers)}")
    return NM(
        int(match[1]),
        int(match[2]),
        transposable=bool(match[3]),
        vector=int(match[4] or 1),
        at_most="at_most" in options,
        solver=solvers[0] if solvers else None,
    )


class PatternText(str):
    """A pattern in its written form, checked: the type of pattern arguments on command lines and in YAML."""

    def __new__(cls, written: str | int | Sequence[int] | Pattern) -> PatternText:
        return super().__new__(cls, parse(written))
