"""Sparse weights in packed storage. Knows no Lightning."""

import torch

from lightning_nm.sparse import cusparselt as _cusparselt  # noqa: F401  # who multiplies on a GPU
from lightning_nm.sparse import gpu_ops as _gpu_ops  # noqa: F401  # its operators
from lightning_nm.sparse import sparse_mma as _sparse_mma  # noqa: F401  # who else multiplies there
from lightning_nm.sparse.acceleration import Acceleration, accelerate
from lightning_nm.sparse.backends import BACKENDS, pack
from lightning_nm.sparse.blocks import PackedBlocks
from lightning_nm.sparse.nm import PackedNM
from lightning_nm.sparse.recognise import recognise
from lightning_nm.sparse.sparse_training import SparseTraining

# they may lie in files that are loaded with weights_only=True: their constructors check what they are given
torch.serialization.add_safe_globals([PackedBlocks, PackedNM])

__all__ = ["BACKENDS", "Acceleration", "PackedBlocks", "PackedNM", "SparseTraining", "accelerate", "pack", "recognise"]
