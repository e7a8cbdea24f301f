"""What the operators of GPUs demand of their arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_nm.kernels import on_gpu, vectorwise_nm
from lightning_nm.kernels.gathered_nm import Layout
from lightning_nm.sparse.gpu_operands import (
    check_bitplane,
    check_cusparselt,
    check_gathered,
    check_sparse_mma,
    check_vectorwise,
)
from tests.kernels.test_gathered_nm import sparse

OUTPUTS, INPUTS = 48, 64


def gathered() -> tuple[Any, ...]:
    rows, mask = sparse(OUTPUTS, INPUTS, 2, 4, torch.bfloat16)
    layout = Layout.of(2, 4, INPUTS)
    assert layout is not None
    return (*on_gpu.pack_gathered(rows, mask, layout), None, 2, 4, INPUTS)


def bitplane() -> tuple[Any, ...]:
    rows, mask = sparse(OUTPUTS, INPUTS, 2, 4, torch.bfloat16)
    return (*on_gpu.pack_bitplane(rows, mask, 2, 4), None, 4, OUTPUTS, INPUTS)


def vectorwise() -> tuple[Any, ...]:
    rows, _ = sparse(OUTPUTS, INPUTS, 2, 4, torch.bfloat16)
    return (*vectorwise_nm.pack(rows, 32), None, OUTPUTS, INPUTS)


def sparse_tensor_cores() -> tuple[Any, ...]:
    return (*on_gpu.pack_sparse_mma(*sparse(OUTPUTS, INPUTS, 2, 4, torch.bfloat16)), None, OUTPUTS, INPUTS)


def compressed() -> tuple[Any, ...]:
    return torch.zeros(OUTPUTS * INPUTS * 9 // 16, dtype=torch.bfloat16), None, OUTPUTS, INPUTS


CHECKS = [
    (check_gathered, gathered),
    (check_bitplane, bitplane),
    (check_vectorwise, vectorwise),
    (check_sparse_mma, sparse_tensor_cores),
    (check_cusparselt, compressed),
]
Check = Callable[..., Any]
Packed = Callable[[], tuple[Any, ...]]


@pytest.mark.parametrize(("check", "packed"), CHECKS)
@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 5)])
def test_shape_of_the_result(check: Check, packed: Packed, shape: tuple[int, ...]) -> None:
    """That of x, with outputs for inputs."""
    assert check(torch.empty(*shape, INPUTS, dtype=torch.bfloat16), *packed()) == (*shape, OUTPUTS)


@pytest.mark.parametrize(("check", "packed"), CHECKS)
@pytest.mark.parametrize(
    "x",
    [
        torch.empty(2, INPUTS + 4, dtype=torch.bfloat16),
        torch.empty(2, INPUTS, dtype=torch.float16),
        torch.empty(2, INPUTS),
        torch.empty(2, INPUTS, dtype=torch.bfloat16, device="meta"),
    ],
)
def test_inputs_that_do_not_fit(check: Check, packed: Packed, x: Tensor) -> None:
    """Other sizes, dtypes and devices, before any kernel reads."""
    with pytest.raises(ValueError):
        check(x, *packed())


@pytest.mark.parametrize(("check", "packed"), CHECKS)
def test_packed_tensors_that_do_not_fit(check: Check, packed: Packed) -> None:
    """Cut off, or of other sizes than are claimed."""
    x, arguments = torch.empty(2, INPUTS, dtype=torch.bfloat16), packed()
    for at, each in enumerate(arguments):
        if isinstance(each, Tensor):
            with pytest.raises(ValueError):
                check(x, *arguments[:at], each[..., :-1], *arguments[at + 1 :])
    with pytest.raises(ValueError):
        check(x, *arguments[:-1], INPUTS + 16)


def test_sides_that_cusparselt_does_not_take() -> None:
    """Multiples of 16 only."""
    weight = torch.zeros(40 * INPUTS * 9 // 16, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"does not fit a weight of shape \(40, 64\)"):
        check_cusparselt(torch.empty(2, INPUTS, dtype=torch.bfloat16), weight, None, 40, INPUTS)
