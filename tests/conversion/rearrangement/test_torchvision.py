"""The architectures of torchvision, where it is installed; `networks` has small ones of the same kinds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_nm.conversion.rearrangement.flow import TOLERANCE, Flow
from tests.conversion.rearrangement.networks import random_values
from tests.conversion.rearrangement.test_flow import assert_same_function, moving, shuffled

try:
    from torchvision import models
except (ImportError, RuntimeError):  # RuntimeError: built for another torch
    pytest.skip("needs torchvision", allow_module_level=True)


def inner(blocks: list[str], layers: list[str]) -> set[str]:
    return {f"{block}.{layer}" for block in blocks for layer in layers}


# model, what must be able to move
MODELS = {
    "resnet18": (models.resnet18, inner(["layer1.0", "layer2.1", "layer4.0"], ["conv1.weight[0]", "conv2.weight[1]"])),
    "resnet50": (
        models.resnet50,
        inner([f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1, 2)], [f"conv{c}.weight[0]" for c in (1, 2, 3)]),
    ),
    "mobilenet_v2": (
        models.mobilenet_v2,
        inner([f"features.{i}.conv" for i in range(2, 18)], ["0.0.weight[0]", "2.weight[1]"]),
    ),
    "mobilenet_v3_small": (
        models.mobilenet_v3_small,
        inner(["features.4.block"], ["0.0.weight[0]", "2.fc1.weight[1]"]),
    ),
    "mobilenet_v3_large": (
        models.mobilenet_v3_large,
        inner(["features.4.block"], ["0.0.weight[0]", "2.fc1.weight[1]"]),
    ),
    "densenet121": (
        models.densenet121,
        inner(["features.denseblock2.denselayer3"], ["conv1.weight[1]", "conv2.weight[0]"]),
    ),
    "shufflenet_v2_x0_5": (models.shufflenet_v2_x0_5, {"stage2.0.branch2.0.weight[0]", "conv5.0.weight[0]"}),
    "googlenet": (
        lambda: models.googlenet(init_weights=False),
        {"inception3a.branch2.0.conv.weight[0]", "aux1.fc2.weight[1]"},
    ),
    "vision transformer": (
        lambda: models.VisionTransformer(64, 16, 2, 4, 32, 64),
        inner(
            [f"encoder.layers.encoder_layer_{i}" for i in (0, 1)],
            ["mlp.0.weight[0]", "self_attention.in_proj_weight[1]"],
        ),
    ),
    "swin": (
        lambda: models.SwinTransformer([4, 4], 16, [1, 1], [2, 4], [4, 4]),
        {"features.1.0.mlp.0.weight[0]", "features.3.0.mlp.3.weight[1]"},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_space_moves_and_the_function_stays(name: str) -> None:
    make, expected = MODELS[name]
    torch.manual_seed(0)
    model = random_values(make()).eval()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    x = torch.randn(2, 3, 64, 64)
    flow = Flow(model, x)
    orders = shuffled(flow)
    assert expected <= moving(flow)
    assert flow.difference(orders) <= TOLERANCE
    if name == "resnet18":
        assert_same_function(model, x, orders)
