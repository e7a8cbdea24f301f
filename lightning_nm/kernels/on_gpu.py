"""Products on a GPU: Triton's kernels where Triton runs, the plain products of the same layouts elsewhere.

Triton runs on CUDA tensors where it is installed, and interpreted on others where ``TRITON_INTERPRET=1`` asks for that;
it is not imported before. x is ``[B, I]``, B at least 1, of the dtype of the weight: bfloat16 or float16; or images
``[B, C, *sizes]``, not empty. Packed 16-bit weights have that dtype here, so that a tensor says what its bits mean.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from functools import cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from lightning_nm.kernels import bitplane_conv as bitplane_filters
from lightning_nm.kernels import gathered_nm, sparse_mma
from lightning_nm.kernels.convolution import Convolution

OLDEST = (3, 5)
"""Version of triton for which the kernels were compiled."""


@cache
def no_triton() -> str | None:
    """Why Triton's kernels do not run here, or None. To ask imports triton."""
    try:
        import triton
    except ImportError:
        return "triton is not installed"
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    return None if version >= OLDEST else f"triton {triton.__version__} is older than {'.'.join(map(str, OLDEST))}"


@cache
def _products(layout: str, on_card: bool) -> ModuleType:
    asked = on_card or os.environ.get("TRITON_INTERPRET") == "1"
    room = "triton." if asked and no_triton() is None else ""
    return import_module(f"lightning_nm.kernels.{room}{layout}")


def on_device(x: Tensor) -> AbstractContextManager[None]:
    """Launches go to the current device."""
    on: AbstractContextManager[None] = torch.cuda.device_of(x)  # type: ignore[no-untyped-call]
    return on


def _line(bias: Tensor | None) -> Tensor | None:
    """As kernels read it, one number after the other: somebody may have given a slice, or one number expanded."""
    return None if bias is None else bias.contiguous()


def gathered(
    x: Tensor,
    positions: Tensor,
    values: Tensor,
    bias: Tensor | None,
    layout: gathered_nm.Layout,
    activation: str = "none",
) -> Tensor:
    """`gathered_nm.matmul`, of values ``[O, chunks, pairs, 2 words]``."""
    with on_device(x):
        products = _products("gathered_nm", x.is_cuda)
        out: Tensor = products.matmul(x, positions, values.view(torch.int32), _line(bias), layout, activation)
        return out


def pack_gathered(rows: Tensor, mask: Tensor, layout: gathered_nm.Layout) -> tuple[Tensor, Tensor]:
    """`gathered_nm.pack`: (positions, values)."""
    positions, values = gathered_nm.pack(rows, mask, layout)
    return positions, values.view(rows.dtype)


def bitplane(
    x: Tensor,
    values: Tensor,
    planes: Tensor,
    bias: Tensor | None,
    m: int,
    outputs: int,
    activation: str = "none",
) -> Tensor:
    """`bitplane_nm.matmul`, of values ``[O, spans, N, 32]``."""
    with on_device(x):
        products = _products("bitplane_nm", x.is_cuda)
        out: Tensor = products.matmul(x, values.view(torch.int32), planes, _line(bias), m, outputs, activation)
        return out


def pack_bitplane(rows: Tensor, mask: Tensor, n: int, m: int, taps: int = 1) -> tuple[Tensor, Tensor]:
    """(values, planes), as `bitplane_conv.pack` makes them; those of one tap are `bitplane_nm.pack`'s."""
    values, planes = bitplane_filters.pack(rows, mask, taps, n, m)
    return values.view(rows.dtype), planes


def vectorwise(
    x: Tensor, values: Tensor, inputs: Tensor, bias: Tensor | None, outputs: int, activation: str = "none"
) -> Tensor:
    """`vectorwise_nm.matmul`."""
    with on_device(x):
        out: Tensor = _products("vectorwise_nm", x.is_cuda).matmul(x, values, inputs, _line(bias), outputs, activation)
        return out


def bitplane_conv(
    x: Tensor,
    values: Tensor,
    planes: Tensor,
    bias: Tensor | None,
    m: int,
    outputs: int,
    convolution: Convolution,
    activation: str = "none",
) -> Tensor:
    """`bitplane_conv.convolve`, of values ``[O, spans, N, 32]``."""
    with on_device(x):
        products = _products("bitplane_conv", x.is_cuda)
        out: Tensor = products.convolve(
            x, values.view(torch.int32), planes, _line(bias), m, outputs, convolution, activation
        )
        return out


def vectorwise_conv(
    x: Tensor,
    values: Tensor,
    inputs: Tensor,
    bias: Tensor | None,
    outputs: int,
    convolution: Convolution,
    activation: str = "none",
) -> Tensor:
    """`vectorwise_conv.convolve`."""
    with on_device(x):
        products = _products("vectorwise_conv", x.is_cuda)
        out: Tensor = products.convolve(x, values, inputs, _line(bias), outputs, convolution, activation)
        return out


@cache
def no_sparse_mma(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why sparse tensor cores do not multiply on a device, or None. To ask compiles and tests the kernel there, once.

    Nobody warrants that Triton hands each lane's registers to the instruction as the kernel wants it: so the kernel is
    used only where its products of random numbers are right.
    """
    if device.type != "cuda":
        return "sparse tensor cores are those of CUDA cards"
    if (reason := no_triton()) is not None:
        return reason
    try:
        kernel = import_module("lightning_nm.kernels.triton.sparse_mma")
    except Exception as error:  # Gluon is experimental
        return f"this triton has no Gluon as the kernel wants it ({type(error).__name__}: {error})"
    with torch.cuda.device(device):
        told: str | None = kernel.self_test(device, dtype)
    return told


def sparse_tensor_cores(
    x: Tensor, values: Tensor, positions: Tensor, bias: Tensor | None, outputs: int, activation: str = "none"
) -> Tensor:
    """`sparse_mma.matmul`, of values ``[O / 32, I / 128, 4 steps, 2 halves, 32 lanes, 8]``."""
    with on_device(x):
        trusted = no_sparse_mma(x.device, x.dtype) is None
        products = import_module("lightning_nm.kernels.triton.sparse_mma") if trusted else sparse_mma
        out: Tensor = products.matmul(x, values.view(torch.int32), positions, _line(bias), outputs, activation)
        return out


def pack_sparse_mma(rows: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """`sparse_mma.pack`: (values, positions)."""
    values, positions = sparse_mma.pack(rows, mask)
    return values.view(rows.dtype), positions
