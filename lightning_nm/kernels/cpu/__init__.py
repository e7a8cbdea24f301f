"""Compiled CPU kernels. Importing this room imports numba; ask `lightning_nm.kernels` instead."""
