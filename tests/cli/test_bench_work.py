"""What is timed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_nm.cli.bench_work import Work, channels_last, of_checkpoint, of_shapes
from lightning_nm.conversion.checkpoint import RECORD
from lightning_nm.patterns import NM, Unstructured, parse


def masked(pattern: str, *shape: int, dim: int = 1) -> Tensor:
    dense = torch.randn(shape)
    return torch.where(parse(pattern).mask(dense, dim=dim), dense, 0.0)


def test_equal_weights_are_timed_once():
    """With the names of all; the others are left, each with the reason, and vectors are not mentioned."""
    state = {
        "a.weight": masked("2:4", 16, 32),
        "a.bias": torch.zeros(16),
        "_orig_mod.b.weight": masked("2:4", 16, 32),
        "c.weight": masked("1:4", 16, 32),
        "conv.weight": masked("2:4", 16, 8, 3, 3),
        "dense.weight": torch.randn(16, 32),
        "skip.weight": masked("1:8", 16, 32),
        "depthwise.weight": masked("1x4@0.5", 16, 1, 3, 3),
        "broken.weight": masked("1:8", 16, 32) / 0.0,
        "codes": torch.zeros(4, 4, dtype=torch.int8),
    }
    works, left = of_checkpoint({"state_dict": state}, ["skip" + ".*"])
    assert [(work.layers, str(work.pattern), work.dim) for work in works] == [
        (["a.weight", "b.weight"], "2:4", 1),
        (["c.weight"], "1:4", 1),
        (["conv.weight"], "2:4", 1),
    ]
    assert works[0].weight is state["a.weight"]
    assert {name: why for name, _, why in left} == {
        "dense.weight": "100% of its weights are not zero",
        "skip.weight": "ignored",
        "depthwise.weight": "every output sums over a single input channel",
        "broken.weight": "it holds NaN or infinity",
    }


def test_the_record_says_along_which_dimension():
    """GPT-2's layers and transposed convolutions sum over the first."""
    state = {"gpt.weight": masked("2:4", 32, 16, dim=0), "up.weight": masked("2:4", 8, 4, 3, 3, dim=0)}
    record = {name: {"pattern": "2:4", "dim": 0} for name in state}
    works, left = of_checkpoint({"state_dict": state, RECORD: record})
    assert [(work.layers, work.dim) for work in works] == [(["gpt.weight"], 0)]
    assert left == [("up.weight", (8, 4, 3, 3), "no kernel for transposed convolutions")]


def test_no_sparse_weight_is_an_error():
    """It says why of each."""
    with pytest.raises(ValueError, match=r"no weight of the checkpoint is sparse\n  w \[4, 4\]: 100% of its weights"):
        of_checkpoint({"state_dict": {"w": torch.ones(4, 4)}})
    with pytest.raises(ValueError, match="it holds no matrix or kernel"):
        of_checkpoint({"state_dict": {"w": torch.ones(4)}})


def test_given_shapes():
    """Masked by each pattern that fits."""
    works, left = of_shapes([[16, 32], [16, 6, 3, 3]], [parse("2:4"), parse("1x16@0.5")])
    assert [(tuple(work.weight.shape), str(work.pattern)) for work in works] == [
        ((16, 32), "2:4"),
        ((16, 32), "1x16@0.5"),
        ((16, 6, 3, 3), "1x16@0.5"),
    ]
    assert all(work.pattern.violations(work.weight) == 0 for work in works)
    assert left == [("random 2:4", (16, 6, 3, 3), "the 6 inputs that one output sums over are not a multiple of 4")]


@pytest.mark.parametrize(
    ("shape", "pattern", "message"),
    [
        ([16], NM(2, 4), "a shape is OUT IN"),
        ([4] * 6, NM(2, 4), "a shape is OUT IN"),
        ([16, 64], NM(1, 64), "M is at most 32"),
        ([16, 64], Unstructured(0.9), "no backend packs unstructured@0.9"),
    ],
)
def test_what_cannot_be_timed_is_told(shape, pattern, message):
    """And nothing left is an error."""
    with pytest.raises(ValueError, match=message):
        of_shapes([shape], [pattern])


def test_operands():
    """One for each batch, of the weight's dtype; convolutions keep the size at stride 1."""
    weight = masked("2:4", 16, 32).bfloat16()
    products = list(Work(["a"], weight, NM(2, 4), 1).products([1, 5], [14], 1, False))
    assert [tuple(product.x.shape) for product in products] == [(1, 32), (5, 32)]
    assert {product.x.dtype for product in products} == {torch.bfloat16}
    assert products[0].bias.shape == (16,)
    conv = Work(["a"], masked("2:4", 16, 8, 3, 5), NM(2, 4), 1)
    (product,) = conv.products([2], [14, 10], 2, True)
    assert product.x.shape == (2, 8, 14, 10)
    assert product.x.is_contiguous(memory_format=torch.channels_last)
    assert product.convolution is not None
    assert product.convolution.spatial((14, 10)) == (7, 5)


def test_sizes_of_other_dimensions_are_refused():
    """One number serves any convolution, two only images."""
    work = Work(["a"], masked("2:4", 16, 8, 3), NM(2, 4), 1)
    assert next(work.products([2], [14], 1, False)).x.shape == (2, 8, 14)
    with pytest.raises(ValueError, match="1 sizes: --size"):
        next(work.products([2], [14, 14], 1, False))


def test_channels_last_where_torch_has_it():
    """Images and volumes; sequences stay as they are."""
    assert channels_last(torch.randn(2, 3, 4, 5)).is_contiguous(memory_format=torch.channels_last)
    assert channels_last(torch.randn(2, 3, 4, 5, 6)).is_contiguous(memory_format=torch.channels_last_3d)
    assert channels_last(torch.randn(2, 3, 4)).is_contiguous()
