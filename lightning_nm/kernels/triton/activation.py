"""`lightning_nm.kernels.activation` inside kernels: of the float32 sums, before they are rounded."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def activated(x, ACTIVATION: tl.constexpr):
    """X of float32 after one of `lightning_nm.kernels.activation.ACTIVATIONS`."""
    if ACTIVATION == "relu":
        x = tl.where(x < 0.0, 0.0, x)  # NaN stays
    elif ACTIVATION == "gelu":
        tail = _tail(tl.abs(x))
        x = x * tl.where(x < 0.0, tail, 1.0 - tail)
    elif ACTIVATION == "gelu_tanh":
        # (1 + tanh u) / 2 = sigmoid(2 u)
        x = x * tl.sigmoid(1.5957691216057308 * x * (1.0 + 0.044715 * x * x))
    elif ACTIVATION == "silu":
        x = x * tl.sigmoid(x)
    return x


@triton.jit
def _tail(x):
    """Of the normal distribution, beyond x >= 0: (1 - erf(x / sqrt 2)) / 2, to 1e-7.

    By Abramowitz and Stegun, 7.1.26: the library's function finds too few registers where a thread has 128 sums.
    """
    t = 1.0 / (1.0 + 0.3275911 * 0.7071067811865476 * x)
    series = 0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429)))
    return 0.5 * t * series * tl.exp(-0.5 * x * x)
