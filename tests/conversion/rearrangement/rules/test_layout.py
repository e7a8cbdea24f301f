"""Operations that move elements: channels are followed, or stay."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.conversion.rearrangement.rules.between import Op, check

FOLLOWED: dict[str, Op] = {
    "permute and back": lambda x: x.permute(0, 2, 3, 1).relu().permute(0, 3, 1, 2),
    "channels last": lambda x: x.movedim(1, -1).flatten(1, 2),
    "flatten": lambda x: x.flatten(1),
    "flatten, channels last": lambda x: x.permute(0, 2, 3, 1).flatten(1),
    "flatten and divide": lambda x: x.flatten(1).view(2, 8, 4, 6),
    "flatten in two steps": lambda x: x.flatten(2).flatten(1),
    "divide rows": lambda x: x.view(2, 8, 2, 2, 6).permute(0, 1, 3, 2, 4).flatten(2).transpose(1, 2),
    "unsqueeze, squeeze": lambda x: x.unsqueeze(1).squeeze(1).unsqueeze(-1).squeeze(),
    "slice of all": lambda x: x[:, :],
    "halves": lambda x: x[:, :4] + x[:, 4:],
    "chunks": lambda x: torch.cat(x.chunk(4, 1)[::-1], 1),
    "unequal parts": lambda x: torch.cat([part * 2 for part in x.split([3, 5], 1)], 1),
    "every other": lambda x: x[:, ::2],
    "rows": lambda x: x[:, :, 1:3, ::2],
    "one row": lambda x: x[:, :, 0].unsqueeze(2),
    "rows unbound": lambda x: torch.stack(x.unbind(2), 2),
    "itself twice": lambda x: torch.cat([x, x], 1),
    "with a constant": lambda x: torch.cat([x, torch.zeros(2, 3, 4, 6)], 1),
    "with what stays": lambda x: torch.cat([x, torch.arange(48.0, dtype=x.dtype).view(2, 1, 4, 6)], 1),
    "gated halves": lambda x: nn.functional.glu(x, 1),
    "repeated": lambda x: x.repeat(1, 3, 1, 2),
    "repeated batch": lambda x: x.repeat(3, 1, 1, 1)[:2],
    "interleaved rows": lambda x: x.repeat_interleave(2, 2),
    "expanded": lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, 4, 6),
    "broadcast over channels": lambda x: x * x.mean(1, keepdim=True).expand(-1, 8, -1, -1),
    "shuffle operation": lambda x: nn.functional.channel_shuffle(x, 2),
    "pixel shuffle": lambda x: nn.functional.pixel_shuffle(x, 2),
    "one channel apart": lambda x: x * x[:, 5:6] + x[:, 2].unsqueeze(1) + x[:, -1:],
    "rows by index": lambda x: x[:, :, torch.tensor([2, 0])],
    "rows selected": lambda x: x.index_select(2, torch.tensor([2, 0])),
    "rows by a mask": lambda x: x[:, :, torch.tensor([True, False, True, True])],
    "places by a mask": lambda x: x[:, :, torch.arange(24).view(4, 6) % 3 == 0].transpose(1, 2),
    "places by a mask of bytes": lambda x: x[:, :, (torch.arange(4) % 2).to(torch.uint8)],
    "tokens by a mask": lambda x: x.movedim(1, -1)[torch.arange(48).view(2, 4, 6) % 5 > 1],
    "by where channels are largest": lambda x: torch.arange(6.0, dtype=x.dtype)[x.argmax(3)].unsqueeze(3),
    "rows rolled": lambda x: x.roll(1, 2).flip(3),
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_followed(name: str) -> None:
    check(FOLLOWED[name], True)


STAYS: dict[str, Op] = {
    "heads": lambda x: x.view(2, 2, 4, 4, 6).softmax(2).sum(1),
    "shuffle by views": lambda x: x.view(2, 2, 4, 4, 6).transpose(1, 2).reshape(2, 8, 4, 6),
    "flip": lambda x: x + x.flip(1),
    "roll": lambda x: x.roll(1, 1),
    "index": lambda x: x[:, torch.tensor([0, 2, 1])],
    "mask": lambda x: x[:, torch.tensor([True, False] * 4)],
    "mask over channels and more": lambda x: x[:, torch.arange(32).view(8, 4) % 3 == 0],
    "mask made of channels": lambda x: torch.ones_like(x[:, :, 0, 0])[(x > x.mean(0)).sum((2, 3)) >= 0].view(2, 8),
    "two indices": lambda x: x[torch.tensor([0, 1]), torch.tensor([2, 3])].flatten(1),
    "one chunk a channel": lambda x: x * x.chunk(8, 1)[7],
    "stacked channels": lambda x: torch.stack([x[:, i] for i in range(8)], 1),
    "two channel dimensions merged": lambda x: torch.einsum("bchw,bdhw->bcd", x, x).flatten(1),
}


@pytest.mark.parametrize("name", STAYS)
def test_stays(name: str) -> None:
    check(STAYS[name], False)
