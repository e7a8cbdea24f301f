"""Transposable masks in plain torch, on any device: what every compiled stage equals bit for bit."""

from lightning_nm.kernels.transposable.cycles import improve
from lightning_nm.kernels.transposable.entropic import plan
from lightning_nm.kernels.transposable.flow import flow
from lightning_nm.kernels.transposable.greedy import fill, greedy, two_approximation
from lightning_nm.kernels.transposable.layout import scores_of
from lightning_nm.kernels.transposable.table import by_table

__all__ = ["by_table", "fill", "flow", "greedy", "improve", "plan", "scores_of", "two_approximation"]
