"""From a trained dense or unstructured model to N:M, without training it anew. Knows no Lightning."""

from lightning_nm.conversion.activations import activation_scores
from lightning_nm.conversion.adaprune import adaprune
from lightning_nm.conversion.batch_norm import reestimate_batch_norm
from lightning_nm.conversion.density import n_for_density, overrides_for
from lightning_nm.conversion.global_budget import global_budget
from lightning_nm.conversion.one_shot import one_shot
from lightning_nm.conversion.rearrangement import Rearranged, Rearrangement, rearrange
from lightning_nm.conversion.report import Conversion, Converted

__all__ = [
    "Conversion",
    "Converted",
    "Rearranged",
    "Rearrangement",
    "activation_scores",
    "adaprune",
    "global_budget",
    "n_for_density",
    "one_shot",
    "overrides_for",
    "rearrange",
    "reestimate_batch_norm",
]
