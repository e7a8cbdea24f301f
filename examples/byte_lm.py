"""A small GPT over bytes, trained N:M sparse on the source text of Python's own standard library.

    python examples/byte_lm.py fit --nm.pattern 2:4 --trainer.max_steps 600

Nothing is downloaded. Every part is configurable: ``fit --help``, ``--config FILE.yaml``.
"""

from __future__ import annotations

import math
import sysconfig
from pathlib import Path

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from lightning_nm.cli import NMCLI, save_figures


class Windows(Dataset[Tensor]):
    """Windows of ``length + 1`` bytes, one every ``stride``; uint8 ``[length + 1]``."""

    def __init__(self, text: Tensor, length: int, stride: int) -> None:
        self.windows = text.unfold(0, length + 1, stride)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Tensor:
        return self.windows[index]


class StandardLibrary(L.LightningDataModule):
    """The .py files of the standard library's top folder and packages, in order of their names.

    Args:
        length: bytes of context.
        batch_size: windows per batch.
        megabytes: how much text to use; the last tenth is for validation.
    """

    def __init__(self, length: int = 128, batch_size: int = 16, megabytes: float = 4.0) -> None:
        super().__init__()
        self.length = length
        self.batch_size = batch_size
        self.megabytes = megabytes

    def setup(self, stage: str) -> None:
        folder = Path(sysconfig.get_paths()["stdlib"])
        files = [*sorted(folder.glob("*.py")), *sorted(folder.glob("[a-z]*/*.py"))]
        text = bytearray()
        for file in files:
            if "test" not in file.parent.name and "packages" not in file.parent.name:
                text += file.read_bytes()
            if len(text) > self.megabytes * 1e6:
                break
        tokens = torch.frombuffer(text, dtype=torch.uint8)
        cut = len(tokens) * 9 // 10
        self.train = Windows(tokens[:cut], self.length, stride=self.length // 2)
        self.val = Windows(tokens[cut:], self.length, stride=self.length)

    def train_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(self.train, self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(self.val, 4 * self.batch_size)


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:  # [B, T, width]
        qkv = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1))  # [B, T, 3, heads, D]
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # [B, heads, T, D] each
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        mixed: Tensor = self.down(F.gelu(self.up(self.norm2(x))))
        return x + mixed


class ByteLM(L.LightningModule):
    """A GPT over bytes.

    Args:
        layers: transformer blocks.
        width: channels.
        heads: attention heads.
        length: the longest context.
        lr: AdamW's peak learning rate; a short warm-up, then cosine.
    """

    def __init__(self, layers: int = 4, width: int = 128, heads: int = 4, length: int = 128, lr: float = 2e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr = lr
        self.token = nn.Embedding(256, width)
        self.position = nn.Parameter(torch.zeros(length, width))
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 256)

    def forward(self, tokens: Tensor) -> Tensor:
        """Byte values [B, T] -> logits [B, T, 256]."""
        x = self.token(tokens) + self.position[: tokens.shape[1]]
        logits: Tensor = self.head(self.norm(self.blocks(x)))
        return logits

    def bits_per_byte(self, window: Tensor) -> Tensor:
        tokens = window.long()
        logits: Tensor = self(tokens[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()) / math.log(2)

    def training_step(self, batch: Tensor) -> Tensor:
        loss = self.bits_per_byte(batch)
        self.log("train/bits_per_byte", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Tensor) -> None:
        self.log("val/bits_per_byte", self.bits_per_byte(batch), prog_bar=True)

    def configure_optimizers(self):  # type: ignore[no-untyped-def]
        optimizer = torch.optim.AdamW(self.parameters(), self.lr, betas=(0.9, 0.95), weight_decay=0.01)
        steps = max(int(self.trainer.estimated_stepping_batches), 2)
        warm_up = min(50, steps // 2)

        def factor(step: int) -> float:
            if step < warm_up:
                return (step + 1) / warm_up
            return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm_up) / (steps - warm_up))))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


if __name__ == "__main__":
    cli = NMCLI(
        ByteLM,
        StandardLibrary,
        trainer_defaults={"max_steps": 600, "log_every_n_steps": 10, "accelerator": "cpu"},
        seed_everything_default=0,
    )
    if cli.subcommand == "fit":
        save_figures(cli.trainer)
