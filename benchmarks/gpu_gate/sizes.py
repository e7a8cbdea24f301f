"""How large the things are that the gate measures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class BlockSize:
    """Of a transformer block."""

    hidden: int
    heads: int
    mlp: int

    @property
    def down(self) -> tuple[int, int]:
        """Shape of the matrix out of the MLP."""
        return self.hidden, self.mlp


@dataclass(frozen=True)
class Sizes:
    """By default those of the issue, for a card."""

    device: str = "cuda"
    weights: tuple[tuple[int, int], ...] = ((14336, 4096), (4096, 4096), (28672, 8192))
    patterns: tuple[str, ...] = ("2:4", "1:4", "1:8", "1:16", "2:4V64", "1:4V64", "1:4V128")
    batches: tuple[int, ...] = tuple(1 << power for power in range(14))
    seconds: float = 0.15
    """Of measuring, for each product."""
    block: BlockSize = BlockSize(4096, 32, 14336)
    tokens: tuple[int, ...] = (1, 16, 4096, 256)
    block_patterns: tuple[str, ...] = ("2:4", "1:4", "1:4V64")
    block_seconds: float = 0.8
    """Of measuring, for each pattern and number of tokens."""
    compile: dict[str, Any] = field(default_factory=lambda: {"mode": "reduce-overhead", "dynamic": False})
    """How torch.compile makes the dense block as fast as it can."""
    model: BlockSize = BlockSize(1024, 16, 2816)
    layers: int = 12
    vocabulary: int = 50304
    model_tokens: tuple[int, int] = (8, 1024)
    training: BlockSize = BlockSize(4096, 32, 14336)
    training_tokens: tuple[int, int] = (4, 2048)
    rounds: int = 80
    """Of training steps: transposable masks are found anew every 40."""
    bench: tuple[str, ...] = (
        *("--shape", "14336", "4096", "--pattern", "2:4", "1:4", "--batch", "1", "64"),
        *("--dtype", "bfloat16", "--device", "cuda", "--seconds", "0.2"),
    )
    """Arguments of `lightning-nm bench`."""
    bench_batches: tuple[int, ...] = (1, 64)
    """In ``bench``, which multiplies with a bias: other kernels."""


TINY = Sizes(
    device="cpu",
    weights=((128, 256),),
    patterns=("2:4",),
    batches=(1, 2),
    seconds=0.0,
    block=BlockSize(32, 2, 64),
    tokens=(1, 4),
    block_patterns=("2:4",),
    block_seconds=0.0,
    compile={"backend": "eager"},
    model=BlockSize(32, 2, 64),
    layers=1,
    vocabulary=64,
    model_tokens=(2, 8),
    training=BlockSize(32, 2, 64),
    training_tokens=(2, 8),
    rounds=4,
    bench=("--shape", "64", "64", "--pattern", "2:4", "--batch", "1", "--seconds", "0"),
)
"""For rehearsals without a card."""

SIZES = {"card": Sizes(), "tiny": TINY}
