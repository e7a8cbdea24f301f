"""How each ATen operation carries channels from its inputs to its outputs.

A rule is right if, whenever the channels of the inputs are permuted as their labels say, the outputs are permuted as
theirs say and nothing else changes. An operation without a rule fixes every channel that it meets.
"""

from lightning_nm.conversion.rearrangement.rules import contraction as contraction
from lightning_nm.conversion.rearrangement.rules import elementwise as elementwise
from lightning_nm.conversion.rearrangement.rules import layout as layout
from lightning_nm.conversion.rearrangement.rules import normalization as normalization
from lightning_nm.conversion.rearrangement.rules import reduction as reduction
from lightning_nm.conversion.rearrangement.rules import spatial as spatial
from lightning_nm.conversion.rearrangement.rules.call import observe as observe
