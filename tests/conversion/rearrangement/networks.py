"""Small networks, and which weights' channels must be able to move in them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.conversion.rearrangement.architectures import (
    Basic,
    Bottleneck,
    Dense,
    Expand,
    Functional,
    Head,
    Inception,
    Language,
    Padded,
    Recurrent,
    ResidualMLP,
    Shuffle,
    UNet,
    ViT,
    Written,
    conv,
    mobilenet_v1,
)


class Network(NamedTuple):
    make: Callable[[], nn.Module]
    input: Callable[[], Tensor]
    moves: set[str]
    """Dimensions of weights whose channels can move."""
    stays: set[str]
    """Some whose channels must not."""


def image() -> Tensor:
    return torch.randn(2, 3, 16, 16)


NETWORKS = {
    "ResNet, basic": Network(
        lambda: Head(nn.Sequential(conv(3, 8), nn.ReLU(), Basic(8, 8), Basic(8, 16, 2), Basic(16, 16)), 16),
        image,
        {
            "features.2.conv1.0.weight[0]",
            "features.2.conv2.0.weight[1]",
            "features.4.conv2.0.weight[0]",
            "fc.weight[1]",
        },
        {"features.0.0.weight[1]", "fc.weight[0]"},
    ),
    "ResNet, bottlenecks": Network(
        lambda: Head(nn.Sequential(conv(3, 8), Bottleneck(8, 8), Bottleneck(16, 8)), 16),
        image,
        {f"features.2.conv{i}.0.weight[{d}]" for i in (1, 2, 3) for d in (0, 1)},
        {"fc.weight[0]"},
    ),
    "ResNeXt": Network(
        lambda: Head(nn.Sequential(conv(3, 16), Bottleneck(16, 8, 2)), 16),
        image,
        {f"features.1.conv{i}.0.weight[{d}]" for i in (1, 2, 3) for d in (0, 1)},
        {"fc.weight[0]"},
    ),
    "MobileNet-V1": Network(
        mobilenet_v1,
        image,
        {"features.0.0.weight[0]", "features.4.0.weight[1]", "features.4.0.weight[0]", "features.6.0.weight[0]"},
        {"fc.weight[0]"},
    ),
    "MobileNet-V2": Network(
        lambda: Head(nn.Sequential(conv(3, 8), Expand(8, 24, 8), Expand(8, 32, 12)), 12),
        image,
        {f"features.{i}.{layer}.0.weight[0]" for i in (1, 2) for layer in ("expand", "depth", "project")},
        {"fc.weight[0]"},
    ),
    "MobileNet-V3": Network(
        lambda: Head(nn.Sequential(conv(3, 8), Expand(8, 24, 8, True), Expand(8, 32, 12, True)), 12),
        image,
        {
            "features.1.fc1.weight[0]",
            "features.1.fc1.weight[1]",
            "features.1.fc2.weight[0]",
            "features.1.depth.0.weight[0]",
        },
        {"fc.weight[0]"},
    ),
    "DenseNet": Network(Dense, image, {"stem.weight[0]", "convs.0.weight[0]", "convs.2.weight[1]"}, {"last.weight[0]"}),
    "ShuffleNet": Network(
        Shuffle,
        image,
        {"inner.0.weight[0]", "inner.0.weight[1]", "outer.0.weight[1]"},
        {"outer.0.weight[0]", "fc.weight[1]"},
    ),
    "Inception": Network(
        Inception,
        image,
        {"a.0.weight[0]", "b1.0.weight[0]", "b2.0.weight[0]", "fc.weight[1]", "aux.weight[1]"},
        {"aux.weight[0]"},
    ),
    "UNet": Network(
        UNet,
        image,
        {"down1.0.weight[0]", "middle.weight[0]", "up.weight[0]", "up.weight[1]", "last.weight[1]"},
        {"last.weight[0]"},
    ),
    "flattened": Network(
        Functional, image, {"kernel[0]", "hidden.weight[0]", "hidden.weight[1]", "out[0]"}, {"out[1]"}
    ),
    "flattened, channels last": Network(
        lambda: Functional(True), image, {"kernel[0]", "hidden.weight[0]", "hidden.weight[1]", "out[0]"}, {"out[1]"}
    ),
    "residual MLP": Network(
        ResidualMLP,
        lambda: torch.randn(3, 6),
        {"embed.weight[0]", "up.weight[0]", "up.weight[1]", "down.weight[0]", "down.weight[1]", "out.weight[1]"},
        {"out.weight[0]", "embed.weight[1]"},
    ),
    "ViT": Network(
        ViT,
        image,
        {"patch.weight[0]", "encoder.layers.0.linear1.weight[0]", "encoder.layers.0.linear2.weight[1]"}
        | {"encoder.layers.1.self_attn.in_proj_weight[1]", "head.weight[1]"},
        {"encoder.layers.0.self_attn.in_proj_weight[0]", "encoder.layers.0.self_attn.out_proj.weight[1]"},
    ),
    "tied language model": Network(
        Language,
        lambda: torch.randint(11, (2, 7)),
        {"embed.weight[1]", "mlp.0.weight[0]", "mlp.0.weight[1]"},
        {"embed.weight[0]"},
    ),
    "recurrent": Network(
        Recurrent,
        lambda: torch.randn(2, 4, 6),
        {"lstm.weight_ih_l0[0]", "lstm.weight_hh_l0[1]", "gru.weight_ih_l0[1]", "gru.weight_hh_l0[0]", "fc.weight[1]"},
        {"lstm.weight_ih_l0[1]"},
    ),
    "padded shortcut": Network(
        Padded, image, {"stem.0.weight[0]", "inner.0.weight[0]", "outer.0.weight[0]"}, {"fc.weight[0]"}
    ),
    "written in place": Network(Written, image, {"a.0.weight[0]", "b.0.weight[0]", "fc.weight[1]"}, {"fc.weight[0]"}),
}


def random_values(model: nn.Module) -> nn.Module:
    """Every bias, scale and running statistic at random, so that none hides a channel that did not move."""
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():
            tensor.data.mul_(torch.rand_like(tensor) + 0.5).add_(torch.rand_like(tensor), alpha=0.1)
    return model


def network(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return random_values(NETWORKS[name].make()), NETWORKS[name].input()


def outputs(model: nn.Module, x: Tensor, training: bool) -> list[Tensor]:
    """In float64, without dropout, on a copy."""
    model = copy.deepcopy(model).double().train(training)
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    with torch.no_grad(), mock.patch.object(F, "dropout", lambda x, *args, **kwargs: x):
        found = model(x.double() if x.is_floating_point() else x)
    return list(found) if isinstance(found, tuple) else [found]
