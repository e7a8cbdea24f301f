"""The promises in plain Python loops, with nothing of lightning_nm in them: slow, and obviously right."""

from __future__ import annotations

import torch
from torch import Tensor

_INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def nm_mask_by_hand(weight: Tensor, n: int, m: int, dim: int = 1) -> Tensor:
    """Sort every group of ``m`` along ``dim`` by falling magnitude, then by index; keep the first ``n``."""
    rows = weight.detach().movedim(dim, -1)
    kept = []
    for group in rows.reshape(-1, m).tolist():
        first = sorted(range(m), key=lambda i: (-abs(group[i]), i))[:n]
        kept.append([i in first for i in range(m)])
    return torch.tensor(kept, dtype=torch.bool).reshape(rows.shape).movedim(-1, dim)


def split_by_hand(weight: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(sparse, hidden): a masked entry moves to hidden and leaves 0.0, a kept one leaves -0.0 in hidden."""
    entries = list(zip(weight.detach().flatten().tolist(), mask.flatten().tolist(), strict=True))
    sparse = [w if keep or w == 0 else 0.0 for w, keep in entries]
    hidden = [-0.0 if keep else w for w, keep in entries]
    return (
        torch.tensor(sparse, dtype=weight.dtype).view(weight.shape),
        torch.tensor(hidden, dtype=weight.dtype).view(weight.shape),
    )


def bits_by_hand(mask: Tensor) -> list[int]:
    """One byte for every eight entries in row-major order, the first entry in the lowest bit."""
    flat = mask.flatten().tolist()
    return [sum(keep << i for i, keep in enumerate(flat[at : at + 8])) for at in range(0, len(flat), 8)]


def hamming_by_hand(first: Tensor, second: Tensor) -> int:
    """Number of entries in which two masks differ."""
    return sum(a != b for a, b in zip(first.flatten().tolist(), second.flatten().tolist(), strict=True))


def raw(tensor: Tensor) -> Tensor:
    """The bits of floats as integers: tells -0.0 from 0.0, and every NaN from every other."""
    return tensor.detach().contiguous().view(_INTEGER[tensor.element_size()])
