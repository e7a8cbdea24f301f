"""The Triton convolution where blocks of outputs share their inputs."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from lightning_nm.kernels import vectorwise_nm as layouts
from lightning_nm.kernels.convolution import Convolution
from lightning_nm.kernels.triton import vectorwise_conv, vectorwise_nm
from lightning_nm.kernels.triton.vectorwise_conv import convolve, kernel
from lightning_nm.kernels.triton.vectorwise_nm import Tile
from lightning_nm.patterns import NM, Block1xN
from tests.kernels.test_vectorwise_nm import shared
from tests.kernels.triton.ahead_of_time import SHARED_MEMORY, Binary, Request, compiled
from tests.kernels.triton.convolutions import CASES, exact, images, taps
from tests.kernels.triton.device import DEVICE

MACHINE = [(64, 4096, True, 90), (128, 4096, False, 90), (128, 4096, False, 80)]
"""Outputs of a block, pixels, whether channels lie side by side, and capability."""


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("convolution", "sizes", "channels_last"),
    [(*CASES[5], True), *((*case, i % 2 == 0) for i, case in enumerate(CASES))],
)
def test_against_float64(convolution: Convolution, sizes: tuple[int, ...], channels_last: bool) -> None:
    """In one to three dimensions, in groups, with bias and activation; the memory format is that of x."""
    inputs, outputs = 48 // convolution.groups, 70 if convolution.groups == 1 else 128
    dtype, pattern = (torch.float16, NM(1, 4, vector=64)) if channels_last else (torch.bfloat16, Block1xN(32, 0.75))
    rows = shared(128, inputs * taps(convolution), pattern, dtype)[:outputs]
    x, bias = images((3, 48, *sizes), dtype, channels_last), torch.randn(outputs).to(dtype)
    packed = [tensor.to(DEVICE) for tensor in layouts.pack(rows, 64 if channels_last else 32)]
    out = convolve(x.to(DEVICE), *packed, bias.to(DEVICE), outputs, convolution, "relu")
    assert out.dtype == dtype
    expected = exact(x, rows, bias, convolution).relu()
    torch.testing.assert_close(out.double().cpu(), expected, atol=0.05, rtol=0.02)
    assert out.is_contiguous() == x.is_contiguous()


@pytest.mark.gpu
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("programs", [1, 264])
def test_inputs_split_among_programs(programs: int, channels_last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or not; more pixels than one program has; no bias."""
    monkeypatch.setattr(vectorwise_nm, "_PROGRAMS", programs)
    convolution = Convolution((3, 2), (1, 1), (1, 0), (1, 1), 1)
    rows = shared(128, 6 * 64, NM(1, 4, vector=128), torch.bfloat16)
    x = images((1, 64, 11, 30), torch.bfloat16, channels_last)
    packed = [tensor.to(DEVICE) for tensor in layouts.pack(rows, 128)]
    out = convolve(x.to(DEVICE), *packed, None, 128, convolution)
    torch.testing.assert_close(out.double().cpu(), exact(x, rows, None, convolution), atol=0.05, rtol=0.02)
    assert out.is_contiguous() != channels_last


@pytest.fixture(scope="module")
def binaries() -> dict[tuple[int, int, bool, int], Binary]:
    """Of images of any sizes."""
    requests = []
    sizes = [name for name in kernel.arg_names if name.islower() and not name.endswith("_ptr")]
    pointers = {"lines_ptr": "*bf16", "values_ptr": "*bf16", "offsets_ptr": "*i32", "bias_ptr": "*bf16"}
    signature = {**pointers, "out_ptr": "*bf16", **dict.fromkeys(sizes, "i32")}
    odd = tuple(name for name in sizes if name not in ("outputs", "length"))
    for rows, pixels, channels_last, capability in MACHINE:
        columns, warps, stages = Tile.of(rows, pixels)
        tile = {"ROWS": rows, "COLUMNS": columns, "STEP": layouts.STEP, "CHANNELS_LAST": channels_last}
        constants = {**tile, "HAS_BIAS": True, "ACTIVATION": "relu", "INTERPRETED": False}
        requests.append(Request(vectorwise_conv.__name__, signature, constants, capability, warps, stages, odd=odd))
    return dict(zip(MACHINE, compiled(requests)))


@pytest.mark.parametrize("case", MACHINE)
def test_machine_code(binaries, case: tuple[int, int, bool, int]) -> None:
    """No spills, shared memory that fits, its tensor cores, pixels and filters copied past the registers."""
    binary, capability = binaries[case], case[3]
    assert binary.spills == 0
    assert binary.shared <= SHARED_MEMORY[capability]
    assert binary.loop["HGMMA" if capability >= 90 else "HMMA"] > 0
    assert binary.loop["LDGSTS"] > binary.loop.get("LDG", 0)
