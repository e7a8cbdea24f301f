"""What a mask may look like: pure functions of a tensor."""

from lightning_nm.patterns.base import Pattern
from lightning_nm.patterns.nm import NM
from lightning_nm.patterns.packed_mask import PackedMask
from lightning_nm.patterns.parse import PatternText, parse

__all__ = ["NM", "PackedMask", "Pattern", "PatternText", "parse"]
