"""Operations on each element, constants, and random numbers."""

from __future__ import annotations

from lightning_nm.conversion.rearrangement.rules.call import Call, rule
from lightning_nm.conversion.rearrangement.trace import SINGLE, Axes


@rule(
    "pointwise",  # whatever torch itself tags so
    *("hardswish", "leaky_relu", "_prelu_kernel", "rrelu_with_noise", "masked_fill", "copy", "_to_copy", "nan_to_num"),
    *("floor_divide", "rsub", "clone", "where", "dropout", "native_dropout", "bernoulli", "log_sigmoid_forward"),
    # these do not mix either: a permutation of what they sum over permutes what they give
    *("_softmax", "_log_softmax", "softmax", "_safe_softmax"),
    *("alias", "detach", "lift_fresh", "fill", "zero", "contiguous"),
)
def pointwise(call: Call) -> list[Axes]:
    joined = call.trace.broadcast([call.trace.axes(tensor) for tensor in call.tensors])
    return [joined] * len(call.outputs)


@rule("zeros", "ones", "full", "empty", "scalar_tensor", "new_zeros", "new_ones", "new_full", "new_empty")
def constant(call: Call) -> list[Axes]:
    """The same everywhere, in whatever order."""
    new = call.trace.channels.new
    return [tuple(new(size, constant=True) if size > 1 else SINGLE for size in call.outputs[0].shape)]


@rule("zeros_like", "ones_like", "full_like", "empty_like")
def constant_like(call: Call) -> list[Axes]:
    return constant(call)


@rule("rand_like", "randn_like", "randint_like")
def noise_like(call: Call) -> list[Axes]:
    """Numbers drawn position by position; what they are shaped like is not touched."""
    return [("random numbers are drawn position by position",) * call.outputs[0].dim()]


@rule("_local_scalar_dense", "item", "is_nonzero")
def number(call: Call) -> list[Axes]:
    return []
