"""Compiled CPU kernels. Importing this room imports numba; ask `lightning_nm.kernels` instead."""

from lightning_nm.kernels.cpu.popcount import popcount
from lightning_nm.kernels.cpu.split import nm_split_, resplit_, supports
from lightning_nm.kernels.cpu.tiles import solve

__all__ = ["nm_split_", "popcount", "resplit_", "solve", "supports"]
