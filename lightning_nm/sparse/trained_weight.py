"""A weight in training: packed anew whenever it has been updated, and who multiplies by it at each size met."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from lightning_nm.patterns import NM, Block1xN
from lightning_nm.sparse.backends import Backend, backends_for
from lightning_nm.sparse.choice import Choice, choose
from lightning_nm.sparse.decision import MEASURED
from lightning_nm.sparse.straight_through import Packed, product
from lightning_nm.training.selection import Selected
from lightning_nm.training.shards import is_sharded
from lightning_nm.training.sparse_weight import SparseWeight

Trained = Selected | SparseWeight
Key = tuple[object, ...]


class TrainedWeight:
    """Multiplies by a linear weight, with gradients: see `lightning_nm.sparse.straight_through`.

    Args:
        weight: what the model trains. A `SparseWeight` tells by its mask whether it is sparse at the moment. The zeros
            of a `Selected` one are counted each time it has been written to, which waits for a GPU; those of a
            `SparseWeight` only where somebody else has written to it, or put other memory in its place.
        backend: a name in `lightning_nm.sparse.BACKENDS` of one that packs fast, where it can; or "auto".
        measured: choices that weights alike share.
    """

    def __init__(self, weight: Trained, backend: str, measured: dict[Key, Choice]) -> None:
        self.weight = weight
        self.choices: dict[Key, Choice] = {}
        self.ran_dense: dict[str, None] = {}
        """Why it was left to torch though it was to be sparse: each reason once, in order."""
        self._backend, self._measured = backend, measured
        self._written: tuple[int, int] = 0, 0  # address and version when it was last looked at
        self._moved = False
        self._obeys: bool | None = None
        self._packed: dict[torch.dtype, Packed] = {}

    def multiply(self, x: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """``x @ W^T + bias`` of x ``[..., I]``, each cast to ``dtype`` first; None: torch is to multiply."""
        weight, dim = self.weight.param, self.weight.dim
        if is_sharded(weight) or weight.is_meta or not x.numel():
            return None
        if weight.is_cuda and torch.cuda.is_current_stream_capturing():
            return None  # a graph would go on with this moment's weights
        if (packed := self._now(dtype)) is None:
            return None
        rows = x.numel() // x.shape[-1]
        by = self._choice(packed, dim, rows, bias is not None).backend
        backward = "dense"
        if x.requires_grad and torch.is_grad_enabled():
            backward = self._choice(packed, 1 - dim, rows, False).backend
        if by == backward == "dense":
            return None
        bias = None if bias is None else bias.to(dtype)
        return product(x.to(dtype), weight, bias, packed, dim, (by, backward))

    def _now(self, dtype: torch.dtype) -> Packed | None:
        """The weight as it is now; None: it is dense."""
        param = self.weight.param
        written = (param.data_ptr(), param._version)
        if written != self._written:
            self._moved = written[0] != self._written[0]
            self._written, self._obeys, self._packed = written, None, {}
        if not self._is_sparse():
            return None
        if dtype not in self._packed:
            self._packed[dtype] = Packed(param.detach().to(dtype), self.weight.pattern)
        return self._packed[dtype]

    def _is_sparse(self) -> bool:
        weight = self.weight
        if isinstance(weight, SparseWeight) and (weight.mask is None or weight.is_open):
            return False
        if self._obeys is None:
            # its own mask made it so, unless others wrote to it since; ``param.data = other`` has no new version
            known = isinstance(weight, SparseWeight) and not weight.touched() and not self._moved
            self._obeys = known or weight.pattern.violations(weight.param.detach(), dim=weight.dim) == 0
        if not self._obeys:
            self.ran_dense[f"what was written to it breaks {weight.pattern}"] = None
        return self._obeys

    # -- who multiplies ---------------------------------------------------------------------------

    def _choice(self, packed: Packed, along: int, rows: int, with_bias: bool) -> Choice:
        # sizes up to the next power of two share a choice
        key = (along, (rows - 1).bit_length(), packed.weight.dtype, with_bias, torch.get_num_threads())
        if key not in self.choices:
            with torch.no_grad():
                made = self._choose(packed, along, rows, with_bias, key)
            what = "x" if along == self.weight.dim else "x's gradient, of"
            shape = [rows, packed.weight.shape[along]]
            self.choices[key] = replace(made, size=f"{what} {shape} {str(packed.weight.dtype).removeprefix('torch.')}")
        return self.choices[key]

    def _choose(self, packed: Packed, along: int, rows: int, with_bias: bool, key: Key) -> Choice:
        weight, pattern = packed.weight, self.weight.pattern
        if not isinstance(pattern, (NM, Block1xN)):
            return Choice("dense", {}, f"no backend packs {pattern} weights")
        if along != self.weight.dim and not (isinstance(pattern, NM) and pattern.transposable):
            return Choice("dense", {}, f"the transposed weight is not {pattern}: its masks are not transposable")
        x, bias = _random(weight, along, rows, with_bias)
        there = backends_for(weight.device)
        fast = {name: backend for name, backend in there.items() if backend.packs_fast}
        refusals = {name: backend.why_not(weight, pattern, x, along) for name, backend in fast.items()}
        if self._backend not in (*MEASURED, "dense"):
            refusal = refusals.get(self._backend, f"{self._backend} packs too slowly for training, or not here")
            return Choice("dense", {}, refusal) if refusal else Choice(self._backend, {}, "asked for")
        able = [name for name, refusal in refusals.items() if refusal is None]
        if self._backend == "dense" or not able:
            told = "; ".join(f"{name}: {refusal}" for name, refusal in refusals.items())
            return Choice(
                "dense", {}, "asked for" if self._backend == "dense" else told or "no backend packs fast here"
            )
        alike = (weight.shape, weight.device, str(pattern), tuple(able), key)
        if alike not in self._measured:
            by: dict[str, Backend] = {"dense": there["dense"], **{name: fast[name] for name in able}}

            def run(backend: Backend) -> Callable[[], Tensor]:
                # packed each time, as at each step
                return lambda: backend.hold_known(weight, pattern, along).linear(x, bias)

            self._measured[alike] = choose({name: run(backend) for name, backend in by.items()}, weight.device)
        return self._measured[alike]


def _random(weight: Tensor, along: int, rows: int, with_bias: bool) -> tuple[Tensor, Tensor | None]:
    """Operands to measure with: (x, bias). Nobody's random numbers are used up."""
    generator = torch.Generator(weight.device).manual_seed(0)
    sizes = [(rows, weight.shape[along]), *([(weight.shape[1 - along],)] if with_bias else [])]
    made = [torch.randn(size, generator=generator, dtype=weight.dtype, device=weight.device) for size in sizes]
    return made[0], made[1] if with_bias else None
