"""What SR-STE costs on top of a dense training step, on a CPU.

    python benchmarks/mask_step.py

Four training steps of the same byte transformer in turn (A B C D A B C D ...), each on a copy of its
own: dense, dense again (the noise), ours (masks, decay, flips at every step, SAD at every tenth), and SR-STE as
an argsort inside an autograd function, as the published code has it. Medians; and means, which include the tenth
steps that a median would hide.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from byte_lm import ByteLM

from lightning_nm.callbacks.topology import Topology
from lightning_nm.kernels import compiled_cpu
from lightning_nm.training import SRSTE, Sparsifier, select

N, M, DECAY = 2, 4, 2e-4
LOG_EVERY = 10  # optimizer steps between two measurements of SAD (Lightning logs every 50)


class ArgsortSRSTE(torch.autograd.Function):
    """Mask by argsort in every forward, decay in every backward (Zhou et al., ICLR 2021, their layout)."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        groups = weight.detach().abs().reshape(-1, M)
        index = torch.argsort(groups, dim=1)[:, : M - N]
        mask = torch.ones_like(groups).scatter_(1, index, 0.0).reshape(weight.shape)
        ctx.save_for_backward(weight, mask)
        return weight * mask

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        weight, mask = ctx.saved_tensors
        decay: Tensor = DECAY * (1 - mask) * weight
        return grad + decay


class ArgsortLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, ArgsortSRSTE.apply(self.weight), self.bias)  # type: ignore[no-untyped-call]


def argsort_copy(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.__class__ = ArgsortLinear
    return model


def trainer(model: ByteLM, tokens: Tensor, fused: bool) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=fused)

    def step() -> None:
        optimizer.zero_grad()
        model.bits_per_byte(tokens).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def measure(batch: int, length: int, rounds: int, fused: bool) -> dict[str, float]:
    """Milliseconds per step (medians), and the ratios to the dense step."""
    torch.manual_seed(0)
    dense = ByteLM(layers=6, width=512, heads=8, length=length)
    ours, again, argsort = copy.deepcopy(dense), copy.deepcopy(dense), argsort_copy(dense)
    tokens = torch.randint(0, 256, (batch, length + 1), dtype=torch.uint8)
    sparsifier, topology = Sparsifier(select(ours, f"{N}:{M}"), SRSTE(DECAY)), Topology()
    topology.measure(sparsifier)  # the first one compiles
    sparse_step = trainer(ours, tokens, fused)

    def our_step() -> None:
        sparse_step()
        if sparsifier.steps % LOG_EVERY == 0:
            topology.measure(sparsifier)

    steps = {
        "dense": trainer(dense, tokens, fused),
        "dense again": trainer(again, tokens, fused),
        "ours": our_step,
        "argsort in autograd": trainer(argsort, tokens, fused),  # type: ignore[arg-type]
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    with sparsifier:
        for round_ in range(rounds + 3):
            for name, step in steps.items():
                began = time.perf_counter()
                step()
                if round_ >= 3:  # warmed up
                    times[name].append(time.perf_counter() - began)
    medians = {name: 1e3 * statistics.median(values) for name, values in times.items()}
    result = {f"{name} ms": value for name, value in medians.items()}
    # paired: each step against the dense step of its own round
    for name in list(steps)[1:]:
        result[f"{name} / dense"] = statistics.median(a / b for a, b in zip(times[name], times["dense"]))
        result[f"{name} / dense, means"] = statistics.fmean(times[name]) / statistics.fmean(times["dense"])
    weights = [w for w in sparsifier.weights if w.hidden is not None and w.mask is not None]
    result["memory, hidden bytes / weight bytes"] = sum(w.hidden.nbytes for w in weights if w.hidden is not None) / sum(
        w.param.nbytes for w in weights
    )
    bits = 8 * sum(w.mask.bits.nbytes for w in weights if w.mask is not None)
    result["memory, mask bits per weight"] = bits / sum(w.param.numel() for w in weights)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--shapes", nargs="+", default=["4x64", "16x128"], help="batch x tokens")
    parser.add_argument("--fused", action="store_true", help="AdamW(fused=True) in every variant")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    args = parser.parse_args()
    kernels = "numba" if compiled_cpu() else "plain torch"
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, ", end="")
    print(f"{torch.get_num_threads()} threads, mask kernels: {kernels}, AdamW fused={args.fused}")
    results = {}
    for shape in args.shapes:
        batch, length = map(int, shape.split("x"))
        results[shape] = measure(batch, length, args.rounds, args.fused)
        print(f"{shape} tokens, median of {args.rounds} rounds")
        for key, value in results[shape].items():
            print(f"  {key:38s} {value:9.3f}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
