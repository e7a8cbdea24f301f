"""What a mask may look like: pure functions of a tensor."""

from lightning_nm.patterns.base import Pattern
from lightning_nm.patterns.block import Block1xN
from lightning_nm.patterns.filter import Filter
from lightning_nm.patterns.layer_budget import LayerBudget
from lightning_nm.patterns.nm import NM
from lightning_nm.patterns.packed_mask import PackedMask
from lightning_nm.patterns.parse import PatternText, parse
from lightning_nm.patterns.unstructured import Unstructured

__all__ = ["NM", "Block1xN", "Filter", "LayerBudget", "PackedMask", "Pattern", "PatternText", "Unstructured", "parse"]
