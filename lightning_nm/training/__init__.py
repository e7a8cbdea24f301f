"""How sparsity is learned: selection, methods, schedules, and the sparsifier. Knows no Lightning."""

from lightning_nm.training.layers import register_layer
from lightning_nm.training.methods import SRSTE, SSTE, STE, Frozen, Method, Update, named_method
from lightning_nm.training.schedule import Schedule
from lightning_nm.training.selection import Selected, Selection, Skipped, select
from lightning_nm.training.sparse_weight import SparseWeight
from lightning_nm.training.sparsifier import Sparsifier

__all__ = [
    "SRSTE",
    "SSTE",
    "STE",
    "Frozen",
    "Method",
    "Schedule",
    "Selected",
    "Selection",
    "Skipped",
    "SparseWeight",
    "Sparsifier",
    "Update",
    "named_method",
    "register_layer",
    "select",
]
