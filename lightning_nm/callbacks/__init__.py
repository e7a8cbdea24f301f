"""The Lightning callback, and what it shows."""

from contextlib import suppress

from lightning_nm.callbacks.nm_sparsity import NMSparsityCallback
from lightning_nm.patterns import PatternText

__all__ = ["NMSparsityCallback"]

# a checked string, by which LightningCLI reads an unquoted 2:4 as it reads "2:4"
with suppress(ImportError):  # without jsonargparse there is no LightningCLI either
    from jsonargparse.typing import register_type

    register_type(PatternText, lambda pattern: str(PatternText(pattern)), PatternText)
