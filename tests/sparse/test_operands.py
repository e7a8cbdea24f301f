"""What operators demand of their arguments: the shapes that torch's own products have, or an error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from lightning_nm.kernels.convolution import Convolution
from lightning_nm.patterns import NM
from lightning_nm.sparse import PackedNM
from lightning_nm.sparse.operands import check_nm_conv, check_nm_linear
from tests.sparse.models import sparse_weight

POINT = Convolution((1, 1), (1, 1), (0, 0), (1, 1), 1)


def packed(*shape: int) -> tuple[Tensor, Tensor]:
    weight = PackedNM.pack(sparse_weight(shape), NM(2, 4))
    return weight.values, weight.positions


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_shapes_of_convolutions_are_those_of_torch(data: st.DataObject) -> None:
    """Any kernel, stride, padding, dilation and groups; or a ValueError where torch has its error."""
    sizes = {key: data.draw(st.tuples(*[st.integers(*range_)] * 2), key) for key, range_ in RANGES.items()}
    groups, outputs = data.draw(st.sampled_from([1, 2])), data.draw(st.sampled_from([4, 8]))
    convolution = Convolution(sizes["kernel"], sizes["stride"], sizes["padding"], sizes["dilation"], groups)
    x = torch.empty(2, 4 * groups, *sizes["x"])
    values, positions = packed(outputs, 4, *convolution.kernel)
    try:
        expected = F.conv2d(x, torch.empty(outputs, 4, *convolution.kernel), None, *convolution[1:]).shape
    except RuntimeError:
        with pytest.raises(ValueError, match="smaller than the kernel"):
            check_nm_conv(x, values, positions, None, 2, 4, outputs, convolution)
        return
    assert check_nm_conv(x, values, positions, None, 2, 4, outputs, convolution) == expected


RANGES = {"kernel": (1, 3), "stride": (1, 3), "padding": (0, 2), "dilation": (1, 2), "x": (1, 6)}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kernel": (1,)}, "does not fit"),
        ({"stride": (0, 1)}, "is none"),
        ({"padding": (-1, 0)}, "is none"),
        ({"groups": 0}, "is none"),
        ({"groups": 3}, "do not fall into 3 groups"),
        ({"kernel": (9, 9)}, "smaller than the kernel"),
        ({"kernel": (2, 2)}, "4 kernel taps"),
    ],
)
def test_convolutions_that_do_not_fit(change: dict[str, Any], reason: str) -> None:
    """A ValueError that says what is wrong, before any kernel reads."""
    values, positions = packed(8, 8, 1, 1)
    with pytest.raises(ValueError, match=reason):
        check_nm_conv(torch.empty(2, 8, 5, 5), values, positions, None, 2, 4, 8, POINT._replace(**change))


@pytest.mark.parametrize("x", [torch.tensor(1.0), torch.ones(2, 8, dtype=torch.long), torch.ones(2, 8).cfloat()])
def test_what_is_no_input(x: Tensor) -> None:
    """Scalars, integers and complex numbers."""
    with pytest.raises(ValueError, match="x is "):
        check_nm_linear(x, *packed(8, 8), None, 2, 4, 8)


def test_a_call_that_passed_does_not_let_another_pass() -> None:
    """Checks are remembered by shape, dtype and device, and by nothing less."""
    values, positions = packed(8, 8)
    assert check_nm_linear(torch.empty(3, 8), values, positions, None, 2, 4, 8) == (3, 8)
    for wrong in (torch.empty(3, 12), torch.empty(3, 8, dtype=torch.int32), torch.empty(3, 8, device="meta")):
        with pytest.raises(ValueError):
            check_nm_linear(wrong, values, positions, None, 2, 4, 8)
