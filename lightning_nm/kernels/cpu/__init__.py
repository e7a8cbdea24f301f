"""Compiled CPU kernels. Importing this room imports numba; ask `lightning_nm.kernels` instead."""

from lightning_nm.kernels.cpu import nm_pack, packed, transposable
from lightning_nm.kernels.cpu.popcount import popcount
from lightning_nm.kernels.cpu.split import nm_split_, resplit_, supports

__all__ = ["nm_pack", "nm_split_", "packed", "popcount", "resplit_", "supports", "transposable"]
