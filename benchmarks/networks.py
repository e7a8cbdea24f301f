"""Networks to measure, in the shapes of the papers that made them known."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class Residual(nn.Module):
    def __init__(self, body: nn.Module, shortcut: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut, self.last = body, shortcut, last

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.body(x) + self.shortcut(x))
        return out


def unit(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, last: nn.Module | None = None
) -> nn.Sequential:
    """Convolution, batch norm, activation."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), last or nn.Identity())


def resnet18() -> nn.Module:
    layers: list[nn.Module] = [unit(3, 64, 7, 2, last=nn.ReLU()), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for outputs in (64, 128, 256, 512):
        for stride in (2 if outputs > 64 else 1, 1):
            shortcut = nn.Identity() if inputs == outputs else unit(inputs, outputs, 1, stride)
            body = nn.Sequential(unit(inputs, outputs, 3, stride, last=nn.ReLU()), unit(outputs, outputs, 3))
            layers.append(Residual(body, shortcut, nn.ReLU()))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))


def mobilenet_v2() -> nn.Module:
    layers: list[nn.Module] = [unit(3, 32, 3, 2, last=nn.ReLU6())]
    inputs = 32
    stages = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for expansion, outputs, repeats, first in stages:
        for stride in (first, *[1] * (repeats - 1)):
            wide = inputs * expansion
            body = nn.Sequential(
                *([unit(inputs, wide, 1, last=nn.ReLU6())] if expansion > 1 else []),
                unit(wide, wide, 3, stride, wide, nn.ReLU6()),
                unit(wide, outputs, 1),
            )
            layers.append(Residual(body, nn.Identity(), nn.Identity()) if stride == 1 and inputs == outputs else body)
            inputs = outputs
    head = [unit(320, 1280, 1, last=nn.ReLU6()), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000)]
    return nn.Sequential(*layers, *head)


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(512, 8, 2048, batch_first=True)
    return nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "ResNet-18": (resnet18, (3, 224, 224)),
    "MobileNet-V2": (mobilenet_v2, (3, 224, 224)),
    "transformer": (transformer, (128, 512)),
}
"""Each with the shape of one of its inputs."""
