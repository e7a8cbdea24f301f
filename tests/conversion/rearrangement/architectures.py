"""Small networks with every way in which channels are tied."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv(inputs: int, outputs: int, kernel: int = 3, *, groups: int = 1, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)
    )


class Basic(nn.Module):
    """ResNet-18's block."""

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(inputs, width, stride=stride), conv(width, width)
        self.down = conv(inputs, width, 1, stride=stride) if stride > 1 or inputs != width else None

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.down is None else self.down(x)
        return F.relu(self.conv2(F.relu(self.conv1(x))) + shortcut)


class Bottleneck(nn.Module):
    """ResNet-50's block; with ``groups`` ResNeXt's."""

    def __init__(self, inputs: int, width: int, groups: int = 1) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(inputs, width, 1), conv(width, width, groups=groups)
        self.conv3 = conv(width, 2 * width, 1)
        self.down = conv(inputs, 2 * width, 1) if inputs != 2 * width else None
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv3(self.relu(self.conv2(self.relu(self.conv1(x)))))
        y += x if self.down is None else self.down(x)
        return self.relu(y)


class Expand(nn.Module):
    """MobileNet-V2's inverted residual; with squeeze-excite MobileNet-V3's."""

    def __init__(self, inputs: int, width: int, outputs: int, squeeze: bool = False) -> None:
        super().__init__()
        self.expand, self.depth, self.project = (
            conv(inputs, width, 1),
            conv(width, width, groups=width),
            conv(width, outputs, 1),
        )
        self.fc1, self.fc2 = (nn.Conv2d(width, 8, 1), nn.Conv2d(8, width, 1)) if squeeze else (None, None)
        self.residual = inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.depth(F.hardswish(self.expand(x))))
        if self.fc1 is not None:
            y = y * F.hardsigmoid(self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(y, 1)))))
        y = self.project(y)
        return x + y if self.residual else y


class Head(nn.Module):
    """Features, global pooling, dropout, a classifier."""

    def __init__(self, features: nn.Module, width: int) -> None:
        super().__init__()
        self.features, self.fc = features, nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.dropout(self.features(x).mean((2, 3)), 0.5, self.training))


def mobilenet_v1() -> nn.Module:
    layers: list[nn.Module] = [conv(3, 8), nn.ReLU()]
    for inputs, outputs in ((8, 16), (16, 16), (16, 24)):
        layers += [conv(inputs, inputs, groups=inputs), nn.ReLU(), conv(inputs, outputs, 1), nn.ReLU()]
    return Head(nn.Sequential(*layers), 24)


class Dense(nn.Module):
    """DenseNet: every layer reads all before it, through a batch norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(16 + 8 * i) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(16 + 8 * i, 8, 3, padding=1) for i in range(3))
        self.last = nn.Conv2d(40, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for norm, layer in zip(self.norms, self.convs):
            features.append(layer(F.relu(norm(torch.cat(features, 1)))))
        return F.avg_pool2d(self.last(F.max_pool2d(torch.cat(features, 1), 2)), 2)


class Shuffle(nn.Module):
    """ShuffleNet-V2's unit: half of the channels go through a branch, then the halves are interleaved."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.outer, self.fc = conv(3, 16), conv(8, 8, 1), conv(8, 8, 1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        kept, branch = self.stem(x).chunk(2, 1)
        y = torch.cat([kept, self.outer(F.relu(self.inner(branch)))], 1)
        b, c, h, w = y.shape
        y = y.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        return self.fc(y.mean((2, 3)))


class Inception(nn.Module):
    """Branches side by side, and a second classifier that only training uses."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.a, self.b1, self.b2, self.c = conv(8, 8, 1), conv(8, 8, 1), conv(8, 12), conv(8, 4, 1)
        self.fc, self.aux = nn.Linear(24, 5), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = F.relu(self.stem(x))
        y = torch.cat([self.a(x), self.b2(F.relu(self.b1(x))), self.c(F.max_pool2d(x, 3, 1, 1))], 1).mean((2, 3))
        return (self.fc(y), self.aux(y)) if self.training else self.fc(y)


class UNet(nn.Module):
    """Down, up again with a transposed convolution, and a skip that is concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.middle = conv(3, 8), conv(8, 16), nn.Conv2d(16, 16, 3, padding=1)
        self.norm = nn.GroupNorm(2, 16)
        self.up, self.join, self.last = (
            nn.ConvTranspose2d(16, 8, 2, 2),
            nn.Conv2d(19, 8, 3, padding=1),
            nn.Conv2d(8, 2, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        first = F.leaky_relu(self.down1(x))
        y = F.silu(self.norm(self.middle(F.gelu(self.down2(F.max_pool2d(first, 2))))))
        y = F.elu(self.join(torch.cat([self.up(y), first, x], 1)))
        return self.last(F.interpolate(y, scale_factor=2, mode="bilinear"))


class Functional(nn.Module):
    """Functions of bare parameters; flattens into a Linear, channels first and channels last."""

    def __init__(self, last: bool = False) -> None:
        super().__init__()
        self.last = last
        self.kernel, self.shift = nn.Parameter(torch.randn(8, 3, 3, 3)), nn.Parameter(torch.randn(8))
        self.hidden, self.out = nn.Linear(8 * 9, 12), nn.Parameter(torch.randn(12, 5))
        self.register_buffer("scale", torch.rand(12))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(F.conv2d(x, self.kernel, self.shift, padding=1))
        y = F.adaptive_max_pool2d(y, 3)
        y = (y.permute(0, 2, 3, 1) if self.last else y).flatten(1)
        return (self.hidden(y).exp() * self.scale) @ self.out


class ResidualMLP(nn.Module):
    """LayerNorm, a gated unit whose halves are one Linear, and a residual; each block's weights used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.out = nn.Linear(6, 16), nn.LayerNorm(16), nn.Linear(16, 5)
        self.up, self.down = nn.Linear(16, 48), nn.Linear(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for _ in range(2):
            value, gate = self.up(self.norm(x)).chunk(2, -1)
            x = x + self.down(value * gate.sigmoid())
        return self.out(F.normalize(x, dim=-1))


class ViT(nn.Module):
    """Patches, a class token, positions, two encoder layers."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.token, self.position = nn.Parameter(torch.randn(1, 1, 16)), nn.Parameter(torch.randn(1, 17, 16))
        layer = nn.TransformerEncoderLayer(16, 4, 32, activation="gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(16), enable_nested_tensor=False)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        return self.head(self.encoder(x)[:, 0])


class Language(nn.Module):
    """Token embedding tied to the output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mlp = nn.Embedding(11, 16), nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))
        self.norm, self.out = nn.RMSNorm(16), nn.Linear(16, 11, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        return self.out(self.norm(x + self.mlp(x)))


class Recurrent(nn.Module):
    """The hidden state feeds back into all gates."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru, self.fc = (
            nn.LSTM(6, 8, batch_first=True),
            nn.GRU(8, 12, batch_first=True),
            nn.Linear(12, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.gru(self.lstm(x)[0])[0][:, -1])


class Padded(nn.Module):
    """CIFAR ResNets' shortcut: new channels are zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.outer, self.fc = conv(3, 8), conv(8, 16), conv(16, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        return self.fc((self.outer(F.max_pool2d(F.relu(self.inner(x)), 2)) + shortcut).amax((2, 3)))


class Written(nn.Module):
    """Results written into a buffer through views; instance norm; a single channel picked out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm, self.fc = (
            conv(3, 8),
            conv(3, 8),
            nn.InstanceNorm2d(16, affine=True),
            nn.Linear(16, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.empty(len(x), 16, *x.shape[2:], dtype=x.dtype)
        y[:, :8] = self.a(x)
        y[:, 8:].copy_(self.b(x))
        y = self.norm(y).sigmoid()
        return self.fc((y * y[:, 3:4].tanh()).sum((-2, -1)))
