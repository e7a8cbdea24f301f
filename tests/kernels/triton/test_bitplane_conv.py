"""The Triton convolution that decodes bit planes."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from lightning_nm.kernels import bitplane_conv as layouts
from lightning_nm.kernels.bitplane_nm import GROUPS, ROWS, spans_at_once
from lightning_nm.kernels.convolution import Convolution
from lightning_nm.kernels.triton import bitplane_conv, bitplane_nm
from lightning_nm.kernels.triton.bitplane_conv import convolve, kernel
from tests.kernels.test_gathered_nm import sparse
from tests.kernels.triton.ahead_of_time import SHARED_MEMORY, Binary, Request, compiled
from tests.kernels.triton.convolutions import CASES, exact, images, taps
from tests.kernels.triton.device import DEVICE

PATTERNS = [(2, 4), (1, 4), (2, 8), (1, 8), (1, 16)]
BUDGET = {(2, 4, 64, 90): 2.6, (1, 4, 16, 80): 1.8}
"""Integer instructions per dense weight, by N, M, pixels and capability: what the linear product may have too."""


@pytest.mark.gpu
@pytest.mark.parametrize(("case", "channels_last"), [(5, False), *((i, i % 2 == 1) for i in range(len(CASES)))])
def test_against_float64(case: int, channels_last: bool) -> None:
    """In one to three dimensions, in groups, with bias and activation; the memory format is that of x."""
    (convolution, sizes), (n, m) = CASES[case], PATTERNS[case % len(PATTERNS)]
    inputs, outputs = 48 // convolution.groups // m * m, 128 if convolution.groups == 2 else 40 + 30 * (case == 0)
    dtype = torch.float16 if channels_last else torch.bfloat16
    rows, mask = sparse(outputs, inputs * taps(convolution), n, m, dtype)
    x = images((2, inputs * convolution.groups, *sizes), dtype, channels_last)
    bias = torch.randn(outputs).to(dtype)
    packed = [tensor.to(DEVICE) for tensor in layouts.pack(rows, mask, taps(convolution), n, m)]
    out = convolve(x.to(DEVICE), *packed, bias.to(DEVICE), m, outputs, convolution, "relu")
    assert out.dtype == dtype
    expected = exact(x, rows, bias, convolution).relu()
    torch.testing.assert_close(out.double().cpu(), expected, atol=0.05, rtol=0.02)
    assert out.is_contiguous() == x.is_contiguous()


@pytest.mark.gpu
@pytest.mark.parametrize("programs", [1, 264])
def test_inputs_split_among_programs(programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or not; several steps of a tap, and more pixels than one program has; no bias."""
    monkeypatch.setattr(bitplane_nm, "_PROGRAMS", programs)
    convolution = Convolution((2, 1), (1, 1), (0, 0), (1, 1), 1)
    rows, mask = sparse(64, 2 * 320, 1, 4, torch.bfloat16)
    x = images((1, 320, 6, 15), torch.bfloat16, False)
    packed = [tensor.to(DEVICE) for tensor in layouts.pack(rows, mask, 2, 1, 4)]
    out = convolve(x.to(DEVICE), *packed, None, 4, 64, convolution)
    torch.testing.assert_close(out.double().cpu(), exact(x, rows, None, convolution), atol=0.05, rtol=0.02)


@pytest.fixture(scope="module")
def binaries() -> dict[tuple[int, int, int, int], Binary]:
    """Of images of any sizes."""
    requests = []
    sizes = [name for name in kernel.arg_names if name.islower() and not name.endswith("_ptr")]
    pointers = {"x_ptr": "*bf16", "values_ptr": "*i32", "planes_ptr": "*i32", "bias_ptr": "*bf16", "out_ptr": "*bf16"}
    signature, odd = {**pointers, **dict.fromkeys(sizes, "i32")}, tuple(size for size in sizes if size != "outputs")
    for n, m, columns, capability in BUDGET:
        tile = {"KERNEL_H": 3, "KERNEL_W": 3, "ROWS": ROWS, "COLUMNS": columns, "SPANS": spans_at_once(m)}
        ending = {"HAS_BIAS": True, "ACTIVATION": "relu", "INTERPRETED": False}
        constants = {"N": n, "M": m, "BITS": (m - 1).bit_length(), **tile, **ending}
        how = (capability, bitplane_nm.WARPS, bitplane_nm.STAGES)
        requests.append(Request(bitplane_conv.__name__, signature, constants, *how, odd=odd))
    return dict(zip(BUDGET, compiled(requests)))


@pytest.mark.parametrize("case", BUDGET)
def test_machine_code(binaries, case: tuple[int, int, int, int]) -> None:
    """No spills, shared memory that fits, its tensor cores, integer instructions within the budget."""
    binary, (_, m, _, capability) = binaries[case], case
    assert binary.spills == 0
    assert binary.shared <= SHARED_MEMORY[capability]
    assert binary.loop["HGMMA" if capability >= 90 else "HMMA"] > 0
    assert binary.integer() / (ROWS * spans_at_once(m) * GROUPS * m / (32 * bitplane_nm.WARPS)) <= BUDGET[case]
