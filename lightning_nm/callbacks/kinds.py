"""What a Lightning object is, by name: `lightning.pytorch` and `pytorch_lightning` have classes of their own."""

from __future__ import annotations


def is_kind(thing: object, *names: str) -> bool:
    """Whether ``thing`` is an instance of a class of one of these names."""
    return not {kind.__name__ for kind in type(thing).__mro__}.isdisjoint(names)
