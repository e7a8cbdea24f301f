"""How training treats what the mask removed: each method is one small class."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lightning_nm import kernels
from lightning_nm.patterns import NM, PackedMask, Pattern


class Update(NamedTuple):
    """The optimizer update that is about to happen."""

    lr: float | Tensor
    """Learning rate of the weight's parameter group."""
    strength: float
    """Fraction of the full decay, from the schedule's ramp."""
    grad_scale: Tensor | None
    """Factor still on the gradients, where the optimizer unscales them itself; None: they are unscaled."""


class Method:
    """Split a dense weight into what the model sees and what is hidden, and take it together again.

    Derive from it to train by a method of your own. One copy serves one weight, so it may hold state;
    what ``state_dict()`` returns (tensors and builtins) is saved and restored with checkpoints.

    ``merge(*split(dense, mask))`` must be ``dense`` bit for bit, and ``sparse`` zero outside ``mask``.
    """

    keeps_hidden = True
    """False: what the mask removes is gone for good, and takes no memory."""
    moves_mask = True
    """False: the first mask is the last."""

    def bind(self, pattern: Pattern, dim: int) -> Method:
        """The copy of this method that serves one weight.

        Raises:
            ValueError: the method cannot train this pattern.
        """
        return copy.deepcopy(self)

    def start(self, dense: Tensor, mask: Tensor, total: Callable[[Tensor], Tensor]) -> None:
        """Find what stays fixed (a scale, say), just before the first split.

        Args:
            dense: the weight; of a sharded one the piece that this process holds.
            mask: its first mask.
            total: sums a tensor over the processes that share the weight.
        """

    def split(self, dense: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """Dense weight, bool mask -> (sparse, hidden), all of the weight's shape.

        Left as it is here, it runs as one fused kernel.
        """
        return torch.where(mask | (dense == 0), dense, 0.0), torch.where(mask, -0.0, dense)

    def merge(self, sparse: Tensor, hidden: Tensor) -> Tensor:
        """(sparse, hidden) -> dense weight."""
        return sparse + hidden

    def gradient_factor(self, update: Update) -> float:
        """Of the hidden part in the gradient term, 0 for none.

        Where `regularize` and `merge` are left as they are here, term and merge run as one fused kernel; the
        hidden part is then what `shrink` has left of it.
        """
        return 0.0

    def regularize(self, grad: Tensor, hidden: Tensor | None, mask: PackedMask, update: Update) -> None:
        """Add the method's gradient term, in place, to a gradient that is new: before an update, or before clipping.

        Left as it is here, that is `gradient_factor` times the hidden part.
        """
        factor = self.gradient_factor(update)
        if factor:
            assert hidden is not None
            kernels.decay_(grad, hidden, factor, update.grad_scale)

    def shrink(self, hidden: Tensor, update: Update) -> None:
        """Change the hidden part itself, in place: once in an optimizer step, just before its (first) update."""

    def state_dict(self) -> dict[str, Tensor | float]:
        return {}

    def load_state_dict(self, state: dict[str, Tensor | float]) -> None:
        pass


class SRSTE(Method):
    """Sparse-refined straight-through estimator (Zhou et al., ICLR 2021, eq. 9).

    The gradient at the sparse weight updates every dense entry, and hidden entries also decay:
    ``grad + decay * hidden``, once per optimizer step, whatever the number of accumulated batches,
    ranks or uses of the weight.

    Args:
        decay: lambda, at least 0. The paper uses 2e-4 with SGD.
        placement: ``"gradient"`` adds the term to the gradient as published. Adaptive optimizers
            then normalise it away or blow it up: under Adam the same lambda is anything between
            nothing and annihilation, by the size of the gradients. ``"decoupled"`` shrinks the hidden
            part by ``lr * decay`` instead, as AdamW does with its weight decay; it needs a far larger
            decay to show.
    """

    def __init__(self, decay: float = 2e-4, placement: Literal["gradient", "decoupled"] = "gradient") -> None:
        if not (math.isfinite(decay) and decay >= 0):
            raise ValueError(f"the SR-STE decay (lambda) must be a number of at least 0, got {decay}")
        if placement not in ("gradient", "decoupled"):
            raise ValueError(f"SR-STE places its decay on the 'gradient' or 'decoupled', not {placement!r}")
        self.decay = decay
        self.placement = placement

    def gradient_factor(self, update: Update) -> float:
        return self.decay * update.strength if self.placement == "gradient" else 0.0

    def shrink(self, hidden: Tensor, update: Update) -> None:
        if self.placement == "decoupled":
            hidden.mul_(1 - update.lr * self.decay * update.strength)


class STE(SRSTE):
    """Straight-through estimator: SR-STE without the decay (Bengio et al., 2013)."""

    def __init__(self) -> None:
        super().__init__(decay=0.0)


class Frozen(Method):
    """One-shot magnitude mask, then fixed: NVIDIA's ASP recipe (Mishra et al., 2021, section 4).

    The mask is chosen when the schedule starts; from then on the masked weights are gone, and weights
    and gradients are masked.
    """

    keeps_hidden = False
    moves_mask = False

    def regularize(self, grad: Tensor, hidden: Tensor | None, mask: PackedMask, update: Update) -> None:
        kernels.resplit_(grad, None, mask.bits)


class SSTE(Method):
    """S-STE (Hu et al., NeurIPS 2024, arXiv 2409.09099): a continuous projection, straight-through.

    ``sparse = beta * sign(w) * max(|w| - t, 0)`` where t is the (M-N)-th smallest magnitude of the
    group: kept weights shrink to 0 before they are swapped out, so the loss has no jumps. beta =
    <w, s> / <s, s> (s: the projection without beta) is found per weight at the first split, then
    fixed. There is no decay. The hidden part is the dense weight itself.
    """

    pattern: NM
    dim: int

    def __init__(self) -> None:
        self.beta: Tensor | None = None

    def bind(self, pattern: Pattern, dim: int) -> SSTE:
        if not isinstance(pattern, NM) or pattern.transposable or pattern.vector > 1:
            raise ValueError(f"S-STE soft-thresholds N:M groups; it cannot train the pattern {pattern}")
        bound = copy.deepcopy(self)
        bound.pattern, bound.dim = pattern, dim
        return bound

    def start(self, dense: Tensor, mask: Tensor, total: Callable[[Tensor], Tensor]) -> None:
        if self.beta is None:
            wide = self._soft(dense, mask).double()
            fit, norm = total(torch.stack([(dense.double() * wide).sum(), wide.square().sum()])).unbind()
            # a weight of equal magnitudes projects to 0: any beta will do
            self.beta = torch.where(norm > 0, fit / norm, 1.0).to(torch.float32)

    def split(self, dense: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        assert self.beta is not None
        return self._soft(dense, mask) * self.beta.to(device=dense.device, dtype=dense.dtype), dense.clone()

    def _soft(self, dense: Tensor, mask: Tensor) -> Tensor:
        shrunk = (dense.abs() - self.pattern.threshold(dense, mask, dim=self.dim)).clamp_(min=0)
        return torch.where(mask, shrunk.copysign(dense), 0.0)

    def merge(self, sparse: Tensor, hidden: Tensor) -> Tensor:
        return hidden

    def state_dict(self) -> dict[str, Tensor | float]:
        return {} if self.beta is None else {"beta": self.beta}

    def load_state_dict(self, state: dict[str, Tensor | float]) -> None:
        if "beta" in state:
            self.beta = torch.as_tensor(state["beta"], dtype=torch.float32)


METHODS: dict[str, type[Method]] = {"sr_ste": SRSTE, "ste": STE, "frozen": Frozen, "s_ste": SSTE}


def named_method(name: str) -> Method:
    """The method of that name with its defaults: "sr_ste", "ste", "frozen" or "s_ste".

    Raises:
        ValueError: an unknown name.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; choose one of {', '.join(METHODS)} or pass a Method")
    return METHODS[name]()
