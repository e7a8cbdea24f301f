"""The operators of torch that multiply packed weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_nm.patterns import NM, Block1xN
from lightning_nm.sparse import PackedBlocks, PackedNM
from lightning_nm.sparse.ops import ops


def nm_weight() -> tuple[Tensor, PackedNM]:
    torch.manual_seed(0)
    weight, pattern = torch.randn(24, 32), NM(2, 4)
    weight = torch.where(pattern.mask(weight), weight, 0.0)
    return weight, PackedNM.pack(weight, pattern)


def block_weight() -> tuple[Tensor, PackedBlocks]:
    torch.manual_seed(0)
    weight, pattern = torch.randn(32, 32), Block1xN(16, 0.5)
    weight = torch.where(pattern.mask(weight), weight, 0.0)
    return weight, PackedBlocks.pack(weight, pattern)


def calls(bias: bool) -> list[tuple[Any, tuple[Any, ...]]]:
    """(operator, arguments)."""
    x, (weight, nm), (_, blocks) = torch.randn(3, 5, 32), nm_weight(), block_weight()
    return [
        (ops.nm_linear.default, (x, nm.values, nm.positions, torch.randn(24) if bias else None, 2, 4, len(weight))),
        (
            ops.block_linear.default,
            (x, blocks.values[:, 0], blocks.inputs, blocks.starts, torch.randn(32) if bias else None),
        ),
    ]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("which", [0, 1])
def test_opcheck(which: int, bias: bool) -> None:
    """Schema, fake tensors and tracing hold what torch demands of them."""
    operator, arguments = calls(bias)[which]
    torch.library.opcheck(operator, arguments)


@pytest.mark.parametrize("weight", [nm_weight, block_weight])
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_compiled_and_exported(backend: str, weight: Callable[[], tuple[Tensor, Any]]) -> None:
    """One graph, the same numbers."""
    dense, packed = weight()

    class Layer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return packed.linear(x).relu()

    x, layer = torch.randn(7, 32), Layer()
    expected = (x @ dense.T).relu()
    with torch.no_grad():
        compiled = torch.compile(layer, fullgraph=True, backend=backend)
        torch.testing.assert_close(compiled(x), expected, atol=1e-4, rtol=1e-5)
        exported = torch.export.export(layer, (x,)).module()
        torch.testing.assert_close(exported(x), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("weight", [nm_weight, block_weight])
def test_autocast(weight: Callable[[], tuple[Tensor, Any]]) -> None:
    """X is rounded as ``F.linear`` rounds it, and so is the result."""
    dense, packed = weight()
    x = torch.randn(7, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, expected = packed.linear(x), nn.functional.linear(x, dense)
    assert out.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected, atol=0.05, rtol=0.02)


@pytest.mark.parametrize("weight", [nm_weight, block_weight])
@pytest.mark.parametrize("shape", [(32,), (0, 32), (2, 0, 32)])
def test_odd_batches(shape: tuple[int, ...], weight: Callable[[], tuple[Tensor, Any]]) -> None:
    """A single row without a batch, and empty ones."""
    dense, packed = weight()
    x = torch.randn(shape)
    torch.testing.assert_close(packed.linear(x), nn.functional.linear(x, dense), atol=1e-4, rtol=1e-5)


def test_what_does_not_fit_is_refused() -> None:
    """Before any kernel reads."""
    for which, wrong in (
        (0, (0, torch.randn(3, 16))),
        (0, (3, torch.randn(9))),
        (1, (2, torch.zeros(3, dtype=torch.int16))),
    ):
        operator, arguments = calls(False)[which]
        given = list(arguments)
        given[wrong[0]] = wrong[1]
        with pytest.raises(ValueError):
            operator(*given)


@pytest.mark.parametrize(("starts", "inputs"), [(10**9, 0), (-5, 0), (0, 10**9), (0, -7)])
def test_corrupt_blocks_read_nothing_beyond_their_ends(starts: int, inputs: int) -> None:
    """Called directly with indices of nowhere: some numbers, and no crash."""
    operator, (x, values, which, rows, bias) = calls(False)[1]
    which, rows = which.int(), rows.clone()
    which[3] = inputs or which[3]
    rows[1] = starts or rows[1]
    assert operator(x, values, which, rows, bias).shape == (3, 5, 32)


@pytest.mark.parametrize("which", [0, 1])
def test_dtypes_and_devices_are_checked(which: int) -> None:
    """Kernels take addresses: they would read other numbers, or another device's memory."""
    operator, arguments = calls(True)[which]
    tensors = [i for i, a in enumerate(arguments) if isinstance(a, Tensor)]
    for wrong in (*[i for i in tensors if not arguments[i].is_floating_point()], 0):
        given = list(arguments)
        given[wrong] = given[wrong].long()
        with pytest.raises(ValueError, match="int64"):
            operator(*given)
    for wrong in tensors:
        given = list(arguments)
        given[wrong] = given[wrong].to("meta")
        with pytest.raises(ValueError, match="move them to one"):
            operator(*given)


@pytest.mark.parametrize("which", [0, 1])
def test_gradients_are_refused(which: int) -> None:
    """Not zero in silence; without gradients nothing is said."""
    operator, (x, *packed) = calls(False)[which]
    x.requires_grad_()
    with pytest.raises(RuntimeError, match="has no gradient"):
        operator(x, *packed)
    with torch.no_grad():
        assert not operator(x, *packed).requires_grad


@pytest.mark.parametrize("weight", [nm_weight, block_weight])
def test_autocast_leaves_double_precision_alone(weight: Callable[[], tuple[Tensor, Any]]) -> None:
    """As it does for ``F.linear``."""
    _, packed = weight()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert packed.linear(torch.randn(3, 32, dtype=torch.float64)).dtype == torch.float64


def test_patterns_that_no_kernel_has() -> None:
    """Windows hold 32 inputs at most, and whole groups."""
    values, positions = torch.zeros(1, 1, 64, 16), torch.zeros(1, 1, 16, 16, dtype=torch.int32)
    for n, m, inputs in ((64, 64, 64), (1, 4, 63), (0, 4, 64), (1, 0, 64)):
        with pytest.raises(ValueError, match="does not fit"):
            ops.nm_linear(torch.randn(3, inputs), values, positions, None, n, m, 16)


@pytest.mark.parametrize("weight", [nm_weight, block_weight])
def test_saved_and_loaded(weight: Callable[[], tuple[Tensor, Any]], tmp_path) -> None:
    """With weights_only=True; a file whose indices were damaged is refused."""
    dense, packed = weight()
    torch.save(packed, tmp_path / "packed.pt")
    assert torch.equal(torch.load(tmp_path / "packed.pt", weights_only=True).unpack(), dense)
    index = packed.positions if isinstance(packed, PackedNM) else packed.inputs
    index.fill_(-1)
    torch.save(packed, tmp_path / "damaged.pt")
    if isinstance(packed, PackedBlocks):  # any four bits are a position among sixteen
        with pytest.raises(ValueError, match="corrupt"):
            torch.load(tmp_path / "damaged.pt", weights_only=True)
