"""What every pattern does with a weight that it cannot mask: a ValueError that says what is wrong."""

from __future__ import annotations

import pickle

import pytest
import torch

from lightning_nm.patterns import NM, Block1xN, Filter, Pattern, Unstructured, parse

PATTERNS = [
    NM(2, 4),
    NM(1, 16),
    NM(2, 4, transposable=True),
    NM(2, 8, vector=4),
    Block1xN(2, 0.75),
    Unstructured(0.5),
    Filter(0.25),
]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
class TestEveryPattern:
    """The promises of the interface."""

    def test_written_form_is_read_back(self, pattern: Pattern) -> None:
        """What str writes, parse reads."""
        assert parse(str(pattern)) == pattern

    def test_is_a_value(self, pattern: Pattern) -> None:
        """A pickled copy is equal and hashes alike, so that patterns can be keys."""
        assert {pattern: 1}[pickle.loads(pickle.dumps(pattern))] == 1

    def test_is_immutable(self, pattern: Pattern) -> None:
        """Nobody changes a pattern under a mask that was made with it."""
        with pytest.raises(AttributeError):
            pattern.n = 3  # type: ignore[attr-defined]

    def test_mask_keeps_the_density(self, pattern: Pattern) -> None:
        """The mask is a bool tensor like the weight, and keeps the share it says."""
        mask = pattern.mask(torch.randn(4, 32))
        assert (mask.dtype, mask.shape) == (torch.bool, (4, 32))
        assert mask.double().mean().item() == pattern.density

    def test_masked_weight_violates_nothing(self, pattern: Pattern) -> None:
        """Mask and verification agree."""
        weight = torch.randn(4, 32)
        assert pattern.violations(torch.where(pattern.mask(weight), weight, 0.0)) == 0

    def test_mask_leaves_the_weight_alone(self, pattern: Pattern) -> None:
        """Patterns are pure functions; only what ends in an underscore writes."""
        weight = torch.randn(4, 32)
        before = weight.clone()
        pattern.mask(weight)
        assert torch.equal(weight, before)

    def test_mask_of_a_parameter_has_no_gradient(self, pattern: Pattern) -> None:
        """A mask is data."""
        assert not pattern.mask(torch.nn.Parameter(torch.randn(4, 32))).requires_grad


def message(weight: torch.Tensor, dim: int = 1) -> str:
    with pytest.raises(ValueError) as error:
        NM(2, 4).mask(weight, dim=dim)
    return str(error.value)


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64], ids=str)
def test_a_weight_that_is_no_float_is_refused(dtype: torch.dtype) -> None:
    """The message names pattern, dtype and shape."""
    said = message(torch.zeros(3, 8, dtype=dtype))
    assert all(part in said for part in ("2:4", str(dtype), "(3, 8)")), said


@pytest.mark.parametrize(("shape", "dim"), [((3, 6), 1), ((6, 8), 0), ((3, 2, 3, 3), 1), ((8, 6), -1)])
def test_a_size_that_groups_do_not_divide_is_refused(shape: tuple[int, ...], dim: int) -> None:
    """The message names pattern, shape and size: nothing is padded."""
    said = message(torch.zeros(shape), dim)
    assert all(part in said for part in ("2:4", str(shape), str(shape[dim]))), said


@pytest.mark.parametrize(("shape", "dim"), [((8,), 1), ((4, 8), 2), ((4, 8), -3), ((), 1)])
def test_a_dimension_that_is_not_there_is_refused(shape: tuple[int, ...], dim: int) -> None:
    """A 1-D weight, for one, has no dimension 1; the message names pattern, shape and dimension."""
    said = message(torch.zeros(shape), dim)
    assert all(part in said for part in ("2:4", str(shape), str(dim))), said


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_a_weight_that_is_not_finite_is_refused(dtype: torch.dtype, bad: float) -> None:
    """The message counts the entries, and names pattern and shape."""
    weight = torch.ones(3, 8, dtype=dtype)
    weight[0, 1] = weight[2, 7] = bad
    said = message(weight)
    assert all(part in said for part in ("2:4", "(3, 8)", "2 NaN or infinite")), said


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("shape", [(8, 16), (8, 16, 3), (8, 16, 3, 3)])
def test_negative_dimensions(pattern: Pattern, shape: tuple[int, ...]) -> None:
    """Count from the end."""
    torch.manual_seed(0)
    weight = torch.randn(shape)
    assert torch.equal(pattern.mask(weight, dim=1 - len(shape)), pattern.mask(weight, dim=1))


@pytest.mark.parametrize("pattern", [*PATTERNS, parse("2:4T,flow"), parse("2:4T,at_most,two_approximation")], ids=str)
@pytest.mark.parametrize("shape", [(0, 16), (16, 0), (16, 16, 0)])
def test_empty_weights(pattern: Pattern, shape: tuple[int, ...]) -> None:
    """Have empty masks, one of each."""
    weight = torch.empty(shape)
    assert pattern.mask(weight).shape == shape
    assert pattern.violations(weight) == 0
    assert pattern.log_diversity(shape) == 0.0


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_memory_formats(pattern: Pattern, memory_format: torch.memory_format) -> None:
    """The mask is that of the values, wherever they lie."""
    torch.manual_seed(0)
    weight = torch.randn(16, 32, 3, 3)
    assert torch.equal(pattern.mask(weight.to(memory_format=memory_format)), pattern.mask(weight))
    strided = torch.randn(16, 64, 3, 3)[:, ::2]
    assert torch.equal(pattern.mask(strided), pattern.mask(strided.contiguous()))
