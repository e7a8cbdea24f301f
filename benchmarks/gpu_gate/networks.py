"""A transformer block in the shape of Llama's, and a language model of such blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpu_gate.sizes import BlockSize


class Block(nn.Module):
    """Causal attention and a SwiGLU, each after RMSNorm; seven matrices, no biases. Without rotary embeddings."""

    def __init__(self, size: BlockSize) -> None:
        super().__init__()
        hidden, self.heads = size.hidden, size.heads
        self.before_attention, self.before_mlp = nn.RMSNorm(hidden), nn.RMSNorm(hidden)
        self.query, self.key, self.value, self.out = (nn.Linear(hidden, hidden, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(hidden, size.mlp, bias=False) for _ in range(2))
        self.down = nn.Linear(size.mlp, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Of x ``[sequences, tokens, hidden]``."""
        normed = self.before_attention(x)
        q, k, v = (
            part(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        normed = self.before_mlp(x)
        out: Tensor = x + self.down(F.silu(self.gate(normed)) * self.up(normed))
        return out


class LanguageModel(nn.Module):
    """Embedding, blocks, head."""

    def __init__(self, vocabulary: int, layers: int, size: BlockSize) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, size.hidden)
        self.blocks = nn.Sequential(*[Block(size) for _ in range(layers)])
        self.norm, self.head = nn.RMSNorm(size.hidden), nn.Linear(size.hidden, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """The loss of each token's successor, of tokens ``[sequences, tokens]``."""
        logits = self.head(self.norm(self.blocks(self.embedding(tokens[:, :-1]))))
        return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())


def random(shape: tuple[int, ...], device: str, seed: int = 0) -> Tensor:
    """Normal numbers, the same each time."""
    return torch.randn(shape, device=device, generator=torch.Generator(device).manual_seed(seed))
