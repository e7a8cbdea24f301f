"""Packed weights against dense ones on a CPU: how much faster the convolutions of known networks are, by pattern.

    python benchmarks/packed_conv.py

Every round times each candidate once, in any order; medians. "oneDNN" is the best dense path that torch has, its weight
prepacked, on channels_last images; ``F.conv2d`` on channels_last and contiguous ones stands beside it. Ratios are
oneDNN's time over ours, fp32, on torch's own threads; those of a network are of the sums over its layers. Every result
is checked against float64. All under `torch.inference_mode`, as Lightning evaluates.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import torch
from packed_linear import medians
from torch import Tensor
from torch.nn import functional as F

from lightning_nm.callbacks.table import markdown_table
from lightning_nm.kernels.convolution import Convolution
from lightning_nm.patterns import NM, Block1xN, parse
from lightning_nm.sparse import pack


class Layer(NamedTuple):
    inputs: int
    outputs: int
    size: int
    """Of its square images."""
    kernel: int = 1


NETWORKS = {
    "ResNet-50, 1x1": [
        Layer(64, 64, 56), Layer(64, 256, 56), Layer(256, 64, 56), Layer(256, 128, 56), Layer(128, 512, 28),
        Layer(512, 128, 28), Layer(512, 256, 28), Layer(256, 1024, 14), Layer(1024, 256, 14), Layer(1024, 512, 14),
        Layer(512, 2048, 7), Layer(2048, 512, 7),
    ],
    "MobileNet-V2, 1x1": [
        Layer(16, 96, 112), Layer(24, 144, 56), Layer(144, 32, 28), Layer(32, 192, 28), Layer(192, 64, 14),
        Layer(64, 384, 14), Layer(384, 96, 14), Layer(96, 576, 14), Layer(576, 160, 7), Layer(160, 960, 7),
        Layer(960, 320, 7), Layer(320, 1280, 7),
    ],
    "ResNet-18, 3x3": [Layer(64, 64, 56, 3), Layer(128, 128, 28, 3), Layer(256, 256, 14, 3), Layer(512, 512, 7, 3)],
}  # fmt: skip


def measure(layer: Layer, batch: int, patterns: list[NM | Block1xN], seconds: float) -> list[float | None]:
    """Seconds of prepacked oneDNN, of ``F.conv2d`` on channels_last and contiguous images, and of every pattern."""
    torch.manual_seed(0)
    padding = [layer.kernel // 2] * 2
    convolution = Convolution((layer.kernel,) * 2, (1, 1), tuple(padding), (1, 1), 1)
    contiguous = torch.randn(batch, layer.inputs, layer.size, layer.size)
    x = contiguous.to(memory_format=torch.channels_last)
    dense, bias = torch.randn(layer.outputs, layer.inputs, layer.kernel, layer.kernel), torch.randn(layer.outputs)
    last = dense.to(memory_format=torch.channels_last)
    prepacked = torch.ops.mkldnn._reorder_convolution_weight(last, padding, [1, 1], [1, 1], 1, list(x.shape))

    def onednn() -> Tensor:
        out: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, prepacked, bias, padding, [1, 1], [1, 1], 1, "none", [], ""
        )
        return out

    candidates = [
        onednn,
        lambda: F.conv2d(x, last, bias, padding=padding),
        lambda: F.conv2d(contiguous, dense, bias, padding=padding),
    ]
    fitting = [pattern for pattern in patterns if not isinstance(pattern, Block1xN) or layer.outputs % pattern.n == 0]
    for pattern in fitting:
        weight = torch.where(pattern.mask(dense), dense, 0.0)
        ours = pack(weight, pattern)
        expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=padding).float()
        torch.testing.assert_close(ours.convolution(x, bias, convolution), expected, atol=1e-2, rtol=1e-3)
        candidates.append(lambda ours=ours: ours.convolution(x, bias, convolution))  # type: ignore[misc]
    times = iter(medians(candidates, seconds))
    return [next(times) for _ in range(3)] + [next(times) if pattern in fitting else None for pattern in patterns]


def cells(times: list[float | None]) -> list[str]:
    onednn = times[0] or 0.0
    return [f"{onednn * 1e6:.0f}", *[f"{onednn / time:.2f}" if time else "-" for time in times[1:]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--patterns", nargs="+", default=("2:4", "1:4", "1x16@0.5", "1x32@0.5", "1x32@0.75"))
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each layer")
    given = parser.parse_args()
    print(f"batch {given.batch}, fp32, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    patterns = [pattern for pattern in map(parse, given.patterns) if isinstance(pattern, (NM, Block1xN))]
    for network in given.networks:
        rows, layers = [], NETWORKS[network]
        times = [measure(layer, given.batch, patterns, given.seconds) for layer in layers]
        for layer, own in zip(layers, times):
            rows.append((f"{layer.inputs} to {layer.outputs}, {layer.size}x{layer.size}", *cells(own)))
        # a layer that a pattern does not fit stays dense
        totals: list[float | None] = [
            sum(own or all_[0] or 0.0 for own, all_ in zip(each, times)) for each in zip(*times)
        ]
        header = (network, "oneDNN, us", "F.conv2d, channels_last", "contiguous", *given.patterns)
        print(markdown_table(header, [*rows, ("all", *cells(totals))]), "\n", flush=True)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
