"""The stages of `lightning_nm.kernels.transposable`, compiled by numba: same masks, same ties."""

from lightning_nm.kernels.cpu.transposable.cycles import improve
from lightning_nm.kernels.cpu.transposable.entropic import plan
from lightning_nm.kernels.cpu.transposable.greedy import fill, greedy
from lightning_nm.kernels.cpu.transposable.layout import scores_of
from lightning_nm.kernels.cpu.transposable.table import by_table

__all__ = ["by_table", "fill", "greedy", "improve", "plan", "scores_of"]
