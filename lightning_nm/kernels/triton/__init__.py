"""Triton kernels. Importing this room imports triton; ask `lightning_nm.kernels` instead."""
