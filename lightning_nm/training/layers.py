"""Which parameters of a module a GEMM reads, and along which dimension it sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy


class Gemm(NamedTuple):
    """A weight that a GEMM reads."""

    dim: int
    """The reduction dimension."""
    span: int
    """Entries along ``dim`` that one output sums over (fewer than all in a grouped transposed convolution)."""
    rows: int
    """Outputs that sum over the same inputs: entries along the other dimension that belong to one GEMM (fewer than
    all in a grouped convolution, and where several projections are stacked)."""


Role = Gemm | str
"""A GEMM's weight, or the reason why the parameter is none."""

_Rule = Callable[[nn.Module, str, Tensor], Role]


VECTOR = "a vector (bias or scale): no GEMM sums over it"
LAZY = "not initialised yet (a lazy layer)"


def _along(dim: int) -> _Rule:
    def rule(module: nn.Module, name: str, weight: Tensor) -> Role:
        if dim >= weight.dim():
            return f"it has no dimension {dim}, along which {type(module).__name__} was registered to sum"
        return Gemm(dim, weight.shape[dim], weight.shape[0 if dim else 1])

    return rule


def _not(reason: str) -> _Rule:
    return lambda module, name, weight: reason


def _conv(module: nn.Module, name: str, weight: Tensor) -> Role:
    assert isinstance(module, _ConvNd)
    dim = 0 if isinstance(module, _ConvTransposeNd) else 1
    span = module.in_channels // module.groups
    if span == 1:
        return ("depthwise: " if module.groups > 1 else "") + "every output sums over a single input channel"
    return Gemm(dim, span, module.out_channels // module.groups)


def _attention(module: nn.Module, name: str, weight: Tensor) -> Role:
    assert isinstance(module, nn.MultiheadAttention)
    # in_proj_weight stacks query, key and value
    weighs = name.endswith("proj_weight")
    return Gemm(1, weight.shape[1], module.embed_dim) if weighs else "an attention bias, not a GEMM weight"


# the first rule whose class a module is an instance of decides
_RULES: list[tuple[type[nn.Module], _Rule]] = [
    (nn.Linear, _along(1)),
    (_ConvNd, _conv),
    (nn.MultiheadAttention, _attention),
    (nn.RNNBase, _along(1)),
    (nn.RNNCellBase, _along(1)),
    (nn.Embedding, _not("a lookup table: no GEMM sums over it")),
    (nn.EmbeddingBag, _not("a lookup table: no GEMM sums over it")),
    (nn.Bilinear, _not("a bilinear form has no single reduction dimension")),
    (nn.LayerNorm, _not("a normalisation scale")),
    (_NormBase, _not("a normalisation scale")),
]


def register_layer(layer: type[nn.Module], *, dim: int = 1) -> None:
    """Make the weights of a layer type of your own selectable.

    Args:
        layer: its class; every parameter of two dimensions or more that it owns becomes a GEMM weight.
        dim: the dimension that its GEMM sums over: 1 for ``[out, in]`` weights, 0 for ``[in, out]``.
    """
    _RULES.insert(0, (layer, _along(dim)))


def _is_transformers_conv1d(module: nn.Module) -> bool:
    """GPT-2's Conv1D, a Linear with an ``[in, out]`` weight, told by name so as to import nothing."""
    return any(c.__name__ == "Conv1D" and c.__module__.startswith("transformers.") for c in type(module).__mro__)


def role(module: nn.Module, name: str, param: Tensor) -> Role:
    """What ``param``, owned by ``module`` under ``name``, is: a GEMM's weight or the reason why not."""
    if is_lazy(param):
        return LAZY
    if not param.is_floating_point():
        return f"its dtype is {param.dtype}, not a floating-point one"
    if param.dim() < 2:
        return VECTOR
    for layer, rule in _RULES:
        if isinstance(module, layer):
            return rule(module, name, param)
    if _is_transformers_conv1d(module):
        return Gemm(0, param.shape[0], param.shape[1])
    kind = type(module).__name__
    if kind == "ParametrizationList":
        return "part of a parametrised weight; remove the parametrisation first"
    return f"{kind} is no known layer type (lightning_nm.training.register_layer makes one known)"
