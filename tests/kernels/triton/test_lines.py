"""Images as lines of pixels."""

from __future__ import annotations

from itertools import product

import pytest
import torch

pytest.importorskip("triton")

from lightning_nm.kernels.convolution import Convolution
from lightning_nm.kernels.triton.lines import RUN, WARPS, copy, lines
from tests.kernels.triton.ahead_of_time import Binary, Request, compiled
from tests.kernels.triton.convolutions import CASES, images
from tests.kernels.triton.device import DEVICE


@pytest.mark.gpu
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("convolution", "sizes"), CASES)
def test_every_tap_is_a_run(convolution: Convolution, sizes: tuple[int, ...], channels_last: bool) -> None:
    """Where a tap of a channel begins, the pixels of the result follow one another, zeros around the image too."""
    torch.manual_seed(0)
    x = images((2, 18, *sizes), torch.bfloat16, channels_last).to(DEVICE)
    made = lines(x, convolution)
    assert made.held.is_contiguous()
    assert made.held.shape[5] % RUN == 0
    if (made.out[0], made.out[1]) == (1, 1):  # the pixels of an image are one line
        x, convolution = x.flatten(2), Convolution(*(each[-1:] for each in convolution[:-1]), 1)
    view, whole = convolution.spread(x)
    seen = whole.patches(view).view(2, *made.out, *whole.kernel, 18)
    for d, h, w in product(*map(range, whole.kernel)):
        held = made.held[:, w, :, d * made.dilation[0] :, h * made.dilation[1] :]
        held = held[:, :, :: made.strides[0], :: made.strides[1]][:, :, : made.out[0], : made.out[1], : made.out[2]]
        assert torch.equal(held, seen[..., d, h, w, :].movedim(-1, 1))


@pytest.mark.gpu
def test_what_lies_so_already_is_not_copied() -> None:
    """Pixels of contiguous images whose lines, or whose whole, make up runs."""
    x = torch.randn(2, 3, 4, 6, device=DEVICE).bfloat16()
    assert lines(x, Convolution((1, 1), (1, 1), (0, 0), (1, 1), 1)).held.data_ptr() == x.data_ptr()
    x = torch.randn(2, 3, 5, 8, device=DEVICE).bfloat16()
    assert lines(x, Convolution((3, 1), (2, 1), (0, 0), (1, 1), 1)).held.data_ptr() == x.data_ptr()
    assert lines(x, Convolution((3, 1), (1, 1), (1, 0), (1, 1), 1)).held.data_ptr() != x.data_ptr()
    odd = torch.randn(1 + x.numel(), device=DEVICE).bfloat16()[1:].view(x.shape)  # 16 bytes at once could not be copied
    assert torch.equal(lines(odd, Convolution((1, 1), (1, 1), (0, 0), (1, 1), 1)).held.flatten(), odd.flatten())


@pytest.fixture(scope="module")
def binaries() -> dict[str, Binary]:
    """By the stride that is 1: of contiguous images of any sizes, and of channels side by side, a multiple of 16."""
    made, requests = ["width_stride", "channel_stride"], []
    sizes = [name for name in copy.arg_names if name.islower() and not name.endswith("_ptr")]
    for one in made:
        kinds = {"x_ptr": "*bf16", "lines_ptr": "*bf16", **{name: "i32" for name in sizes if name != one}}
        even = ("channels", "image_stride", "depth_stride", "height_stride", "width_stride")
        odd = tuple(name for name in sizes if one == "width_stride" or name not in even)
        constants = {"CHANNELS": 64, "PIXELS": 64, one: 1}
        requests.append(Request(lines.__module__, kinds, constants, 90, WARPS, 3, "copy", odd))
    return dict(zip(made, compiled(requests)))


@pytest.mark.parametrize("one", ["width_stride", "channel_stride"])
def test_machine_code(binaries, one: str) -> None:
    """No spills; runs are written at once, of which a thread has four, and read so where channels lie side by side."""
    binary = binaries[one]
    assert binary.spills == 0
    assert binary.instructions["STG"] == 4
    assert binary.instructions["LDG"] == (4 if one == "channel_stride" else 32)
