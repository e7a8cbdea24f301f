"""Who multiplies on a GPU; without one Triton interprets, and cards are pretended."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_nm.kernels import on_gpu
from lightning_nm.kernels.convolution import Convolution
from lightning_nm.kernels.sparse_mma import matmul as plain
from lightning_nm.patterns import NM, Block1xN, Pattern
from lightning_nm.sparse import BACKENDS, accelerate, decision, prior, recognise
from lightning_nm.sparse.backends import backends_for
from lightning_nm.sparse.dispatch import Dispatched
from lightning_nm.sparse.gpu_backends import Gpu, whole_groups
from tests.kernels.triton.device import DEVICE

NAMES = [name for name, backend in BACKENDS.items() if backend.device == "cuda" and name != "cusparselt"]
PATTERNS: dict[str, Any] = {
    "gathered": NM(2, 4),
    "bitplane": NM(1, 8),
    "vectorwise": NM(1, 4, vector=64),
    "sparse_mma": NM(2, 4),
}

pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in .*")  # rows of x that nobody asks for


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is none, the processor is one."""
    if DEVICE.type == "cpu":
        monkeypatch.setattr(Gpu, "device", "cpu")
        monkeypatch.setattr(Gpu, "_no_card", lambda self, weight: None)
        for name in ("onednn", "cpu"):
            monkeypatch.setattr(type(BACKENDS[name]), "device", "another")
        # nothing interprets that kernel: plain torch multiplies in its place
        monkeypatch.setattr(on_gpu, "no_sparse_mma", lambda device, dtype: None)
        monkeypatch.setattr(
            on_gpu, "sparse_tensor_cores", lambda x, values, *rest: plain(x, values.view(torch.int32), *rest)
        )
    monkeypatch.setattr(prior, "HOPELESS", 0.0)  # weights are small here, and everything is to be tried
    decision.forget()


def sparse(shape: tuple[int, ...], pattern: Pattern, dim: int = 1, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    torch.manual_seed(0)
    weight = torch.randn(shape)
    return torch.where(pattern.mask(weight, dim=dim), weight, 0.0).to(dtype).to(DEVICE)


def assert_near(out: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(out.double(), expected, atol=0.1, rtol=0.02)


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("shape", [(128,), (5, 128), (2, 3, 128)])
def test_linear(name: str, shape: tuple[int, ...], dim: int) -> None:
    """Each gives x @ W^T + bias; of ``[in, out]`` weights x @ W + bias."""
    weight = sparse((64, 128) if dim else (128, 64), PATTERNS[name], dim)
    bias, x = torch.randn(64, device=DEVICE).bfloat16(), torch.randn(shape, device=DEVICE).bfloat16()
    out = BACKENDS[name].hold(weight, PATTERNS[name], dim).linear(x, bias)
    assert out.dtype == torch.bfloat16
    assert_near(out, F.linear(x.double(), (weight if dim else weight.T).double(), bias.double()))


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("stride", "padding"), [((1, 1), (0, 0)), ((2, 1), (1, 0))])
def test_pixels(name: str, layout: torch.memory_format, stride: tuple[int, int], padding: tuple[int, int]) -> None:
    """1x1 convolutions keep the memory format of x."""
    weight, bias = sparse((64, 128, 1, 1), PATTERNS[name]), torch.randn(64, device=DEVICE).bfloat16()
    convolution = Convolution((1, 1), stride, padding, (1, 1), 1)
    x = torch.randn(2, 128, 3, 2, device=DEVICE).bfloat16().contiguous(memory_format=layout)
    out = BACKENDS[name].hold(weight, PATTERNS[name], 1).convolution(x, bias, convolution)
    assert_near(out, convolution.dense(x.double(), weight.double(), bias.double()))
    assert out.is_contiguous(memory_format=layout)


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_groups_of_fewer_weights(name: str) -> None:
    """Zeros of either sign fill up; a group that holds more is refused where groups are packed."""
    pattern = PATTERNS[name]
    weight = sparse((64, 128), pattern)
    weight[:, 8:40] = -0.0
    weight[3] = 0.0
    x = torch.randn(4, 128, device=DEVICE).bfloat16()
    operand = BACKENDS[name].hold(weight, pattern, 1)
    assert_near(operand.linear(x, None), x.double() @ weight.double().T)


def test_a_weight_that_breaks_its_pattern() -> None:
    """Is never packed."""
    rows = torch.zeros(2, 8)
    rows[1, 4:7] = 1.0
    with pytest.raises(ValueError, match="not 2:4"):
        whole_groups(rows, 2, 4)
    assert whole_groups(rows, 3, 4)[1].unflatten(1, (-1, 4)).sum(2).unique().tolist() == [3]


REFUSALS: list[tuple[str, tuple[int, ...], Any, tuple[int, ...], torch.dtype, str | None]] = [
    ("gathered", (64, 128), NM(2, 4), (8, 128), torch.bfloat16, None),
    ("gathered", (64, 128), NM(2, 4), (3, 3, 128), torch.bfloat16, "more than 8 rows"),
    ("gathered", (64, 128), NM(16, 32), (1, 128), torch.bfloat16, "the positions of 16:32 do not fit a word"),
    ("gathered", (64, 128), NM(2, 4), (8, 128), torch.float32, "no kernel for torch.float32 on a GPU"),
    ("gathered", (64, 128), Block1xN(16, 0.5), (8, 128), torch.float16, "no kernel for 1xN blocks"),
    ("bitplane", (64, 128), Block1xN(16, 0.5), (8, 128), torch.float16, "no kernel for 1xN blocks"),
    ("bitplane", (64, 128), NM(4, 8), (8, 128), torch.float16, "no kernel for 4:8"),
    ("bitplane", (64, 128), NM(1, 4), (65, 128), torch.float16, "more than 64 rows"),
    ("bitplane", (64, 128), NM(1, 4), (64, 128), torch.float16, None),
    ("vectorwise", (64, 128), NM(1, 4), (9, 128), torch.float16, "128 outputs together need 100% of the inputs"),
    ("vectorwise", (128, 1024), NM(1, 4, vector=64), (9000, 1024), torch.float16, None),
    ("vectorwise", (64, 1024, 3, 3), NM(1, 4, vector=64), (2, 1024, 5, 5), torch.float16, "no kernel for k x k conv"),
    ("vectorwise", (64, 1024, 1), NM(1, 4, vector=64), (2, 2048, 5), torch.float16, "no kernel for grouped conv"),
]


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize(("name", "shape", "pattern", "x", "dtype", "reason"), REFUSALS)
def test_what_they_can(
    name: str, shape: tuple[int, ...], pattern: Any, x: tuple[int, ...], dtype: torch.dtype, reason: str | None
) -> None:
    """A reason for the report, or None."""
    weight = sparse(shape, pattern, dtype=dtype)
    told = BACKENDS[name].why_not(weight, pattern, torch.empty(x, dtype=dtype, device=DEVICE))
    assert told is None if reason is None else told is not None and told.startswith(reason)


def test_elsewhere_than_on_a_card() -> None:
    """They refuse, and are not even asked."""
    weight, x = sparse((64, 128), NM(2, 4)).cpu(), torch.empty(2, 128).bfloat16()
    for name in NAMES:
        assert BACKENDS[name].why_not(weight, NM(2, 4), x) == "its kernels are for CUDA cards"
        assert name not in backends_for(torch.device("cpu"))
        held = Dispatched(weight, NM(2, 4), 1, name)
        held.product(x, None, None)
        assert held.made()[0].reason == f"{name} is not for cpu tensors"
    assert list(backends_for(torch.device("cuda")))[:2] == ["dense", NAMES[0]]


def test_triton_that_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing, or older than the kernels."""
    triton = pytest.importorskip("triton")
    assert on_gpu.no_triton.__wrapped__() is None
    monkeypatch.setattr(triton, "__version__", "3.4.1+git")
    assert on_gpu.no_triton.__wrapped__() == "triton 3.4.1+git is older than 3.5"
    monkeypatch.setitem(sys.modules, "triton", None)
    assert on_gpu.no_triton.__wrapped__() == "triton is not installed"


@pytest.mark.gpu
@pytest.mark.usefixtures("card")
@pytest.mark.parametrize("name", NAMES)
def test_dispatched(name: str) -> None:
    """Measured against dense, and right; asked for, it is taken; the report says what cannot multiply."""
    weight, x = sparse((64, 128), PATTERNS[name]), torch.randn(4, 128, device=DEVICE).bfloat16()
    pattern = recognise(weight)
    held = Dispatched(weight, pattern, 1)
    assert_near(held.product(x, None, None), x.double() @ weight.double().T)
    [choice] = held.made()
    assert {"dense", name} <= choice.times.keys()
    held = Dispatched(weight, pattern, 1, name)
    assert_near(held.product(x, None, None), x.double() @ weight.double().T)
    assert held.made()[0].backend == name


@pytest.mark.gpu
@pytest.mark.usefixtures("card")
def test_nobody_can() -> None:
    """Every reason is told."""
    held = Dispatched(sparse((64, 128), NM(4, 8)), NM(4, 8), 1)
    held.product(torch.randn(20, 128, device=DEVICE).bfloat16(), None, None)
    [choice] = held.made()
    assert choice.backend == "dense"
    assert "gathered: more than 8 rows; bitplane: no kernel for 4:8; vectorwise: 128 outputs" in choice.reason


@pytest.mark.gpu
@pytest.mark.usefixtures("card")
def test_a_model() -> None:
    """`accelerate` uses them; the model's own parameters come back."""
    torch.manual_seed(0)
    model = torch.nn.Linear(128, 64).to(DEVICE).bfloat16()
    x = torch.randn(3, 128, device=DEVICE).bfloat16()
    with torch.no_grad():
        model.weight.copy_(sparse((64, 128), NM(2, 4)))
        expected = model.double()(x.double())
        model.bfloat16()
        accelerated = accelerate(model, backend="gathered")
        assert_near(model(x), expected)
    assert [choice.backend for choice in accelerated.choices["weight"]] == ["gathered"]
    accelerated.restore()


def test_triton_is_not_imported_without_a_card() -> None:
    """Machines without it work."""
    code = """
import sys, torch
sys.modules["triton"] = None
from lightning_nm.sparse import BACKENDS, accelerate
model = torch.nn.Linear(64, 64).bfloat16()
with torch.no_grad():
    model.weight.mul_(torch.arange(64) % 4 < 2)
    accelerate(model)
    model(torch.randn(2, 64).bfloat16())
    operator = torch.ops.lightning_nm.vectorwise_linear
    operator(torch.ones(1, 64).half(), torch.ones(64, 64).half(), torch.zeros(1, 64).int(), None, 64, 64)
"""
    subprocess.run([sys.executable, "-W", "error::ImportWarning", "-c", code], check=True, timeout=120)


@pytest.mark.usefixtures("card")
def test_weights_alike_that_not_every_backend_can_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two weights of one pattern by name, of which one is 2:4 too: what was measured for it is not the other's."""
    both = sparse((64, 128), NM(1, 4, vector=64)), sparse((64, 128), Block1xN(32, 0.75))
    monkeypatch.setattr(
        type(BACKENDS["vectorwise"]), "_why_not", lambda self, weight, *_: None if weight is both[0] else "it cannot"
    )
    x, backends = torch.randn(3, 128, device=DEVICE).bfloat16(), []
    for weight in both:
        held = Dispatched(weight, Block1xN(32, 0.75), 1)
        held.product(x, None, None)
        backends.append(held.made()[0].times.keys())
    assert "vectorwise" in backends[0]
    assert "vectorwise" not in backends[1]
