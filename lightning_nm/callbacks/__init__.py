"""The Lightning callback, and what it shows."""

from lightning_nm.callbacks.nm_sparsity import NMSparsityCallback

__all__ = ["NMSparsityCallback"]
