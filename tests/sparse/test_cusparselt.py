"""2:4 weights through cuSPARSELt, whose raw calls are pretended where there is no card."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_nm.kernels import cusparselt as raw
from lightning_nm.kernels.cusparselt import Algorithm
from lightning_nm.patterns import NM
from lightning_nm.sparse import BACKENDS, cusparselt, found
from lightning_nm.sparse.gpu_backends import Gpu
from lightning_nm.sparse.ops import ops

OUTPUTS, INPUTS = 48, 64


class Pretended:
    """cuSPARSELt of four algorithms, of which the third is wrong and the last takes nothing."""

    def __init__(self) -> None:
        self.weights: list[Tensor] = []
        self.calls: list[Algorithm] = []
        self.batches: set[int] = set()
        self.wrong, self.searches = {2}, 0
        self.seconds = {0: 3.0, 1: 2.0, 2: 1.0}

    def compress(self, rows: Tensor) -> Tensor:
        assert rows.is_contiguous()
        self.weights.append(rows.clone())
        return rows.new_full((rows.numel() * 9 // 16,), len(self.weights) - 1)

    def multiply(
        self,
        compressed: Tensor,
        columns: Tensor,
        bias: Tensor | None = None,
        alpha: Tensor | None = None,
        out_dtype: torch.dtype | None = None,
        transpose_result: bool = False,
        alg_id: int = 0,
        split_k: int = 1,
        split_k_mode: int = -1,
    ) -> Tensor:
        assert columns.shape[1] % 8 == 0
        assert columns.T.is_contiguous()
        assert transpose_result
        if alg_id == 3:
            raise RuntimeError("CUDA error: operation not supported")
        self.calls.append(Algorithm(alg_id, split_k, split_k_mode))
        self.batches.add(columns.shape[1])
        out = F.linear(columns.T, self.weights[int(compressed[0])], bias)
        return out * 1.05 if alg_id in self.wrong else out

    def search(self, compressed: Tensor, columns: Tensor, *rest: Any) -> tuple[int, int, int, int]:
        _, alpha, out_dtype, transpose_result = rest
        assert (alpha, out_dtype, transpose_result) == (None, None, True)
        self.searches += 1
        return 1, 4, 1, 4

    def clock(self, call: Any) -> float:
        call()
        algorithm = self.calls[-1]
        return self.seconds[algorithm.alg_id] / algorithm.split_k


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Pretended:
    made = Pretended()
    monkeypatch.setattr(torch, "_cslt_compress", made.compress)
    monkeypatch.setattr(torch, "_cslt_sparse_mm", made.multiply)
    monkeypatch.setattr(torch._C, "_cusparselt", SimpleNamespace(mm_search=made.search), raising=False)
    monkeypatch.setattr(cusparselt, "stopwatch", lambda device: made.clock)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cusparselt, "_checked", {})
    return made


def weight(pattern: NM = NM(2, 4), shape: tuple[int, ...] = (OUTPUTS, INPUTS), dim: int = 1) -> Tensor:
    torch.manual_seed(0)
    dense = torch.randn(shape)
    return torch.where(pattern.mask(dense, dim=dim), dense, 0.0).bfloat16()


def hold(held: Tensor, dim: int = 1) -> Any:
    return BACKENDS["cusparselt"].hold(held, NM(2, 4), dim)


def test_the_fastest_that_is_right(library: Pretended) -> None:
    """The third algorithm would be faster, but is wrong; split-k is what the search found."""
    held, x, bias = weight(), torch.randn(5, INPUTS).bfloat16(), torch.randn(OUTPUTS).bfloat16()
    out = hold(held).linear(x, bias)
    assert out.shape == (5, OUTPUTS)
    torch.testing.assert_close(out, F.linear(x, held, bias))
    assert library.calls[-1] == Algorithm(1, 4, 1)
    assert library.batches == {8}  # batches are filled up to whole eights


@pytest.mark.parametrize("dim", [0, 1])
def test_any_batch(library: Pretended, dim: int) -> None:
    """One search for every power of two, with a bias and without."""
    held = weight(shape=(OUTPUTS, INPUTS) if dim else (INPUTS, OUTPUTS), dim=dim)
    operand = hold(held, dim)
    for batch, searches in ((1, 1), (2, 2), (3, 3), (4, 3), (17, 4), (32, 4)):
        x = torch.randn(batch, INPUTS).bfloat16()
        torch.testing.assert_close(operand.linear(x, None), F.linear(x, held if dim else held.T))
        assert library.searches == searches
    operand.linear(x, torch.zeros(OUTPUTS).bfloat16())
    assert library.searches == 5


def test_the_choice_is_kept_on_disk_and_checked_again(library: Pretended) -> None:
    """By card, versions, sizes and batch; an entry that is wrong by now, or damaged, is searched anew."""
    held, x = weight(), torch.randn(8, INPUTS).bfloat16()

    def in_another_process() -> None:
        cusparselt._checked.clear()
        hold(held).linear(x, None)

    in_another_process()
    in_another_process()
    assert library.searches == 1
    assert library.calls[-1] == Algorithm(1, 4, 1)
    library.wrong.add(1)
    in_another_process()
    assert library.searches == 2
    assert library.calls[-1] == Algorithm(0, 4, 1)
    key = cusparselt._key(held, 8, False)
    assert torch.__version__ in key
    for damaged in ("0", [0], [0, 1, "2"], [0, 1, True], {"alg_id": 0}):
        found.write("cusparselt", key, damaged)
        in_another_process()
    assert library.searches == 7


def test_weights_alike_share_what_was_found(library: Pretended) -> None:
    """In a process each size is checked once, whatever weight is packed, and however often."""
    held, x = weight(), torch.randn(8, INPUTS).bfloat16()
    for other in (held, held * 2, held * 3):
        calls = len(library.calls)
        torch.testing.assert_close(hold(other).linear(x, None), F.linear(x, other))
    assert library.searches == 1
    assert len(library.calls) == calls + 1


def test_what_is_known_to_obey_is_not_looked_at(library: Pretended, monkeypatch: pytest.MonkeyPatch) -> None:
    """In training nothing waits for the card; a transposed weight is packed row-major all the same."""
    held = weight(NM(2, 4, transposable=True))
    monkeypatch.setattr(raw, "is_two_of_four", lambda rows: pytest.fail("looked"))
    x = torch.randn(8, OUTPUTS).bfloat16()
    operand = BACKENDS["cusparselt"].hold_known(held, NM(2, 4, transposable=True), 0)
    torch.testing.assert_close(operand.linear(x, None), F.linear(x, held.T))


def test_within_autocast() -> None:
    """As training steps are: what algorithms are checked against stays a float32 product."""
    with torch.autocast("cpu", torch.bfloat16):
        problem = cusparselt._Problem(weight(), 8, True)
    assert problem._expected.dtype == problem._allowed.dtype == torch.float32
    exact = F.linear(*(each.double() for each in (problem.x, weight(), problem.bias)))
    torch.testing.assert_close(problem._expected.double(), exact, atol=1e-4, rtol=1e-4)


def test_none_is_right(library: Pretended) -> None:
    """Then it says so; dispatch takes another."""
    library.wrong = {0, 1, 2}
    with pytest.raises(RuntimeError, match=r"no algorithm .* at 8 x \[48, 64\]"):
        hold(weight()).linear(torch.randn(8, INPUTS).bfloat16(), None)


def test_without_a_search(library: Pretended, monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch that has none has the default algorithm, if that is right."""
    monkeypatch.setattr(torch._C, "_cusparselt", None, raising=False)
    held, x = weight(), torch.randn(8, INPUTS).bfloat16()
    torch.testing.assert_close(hold(held).linear(x, None), F.linear(x, held))
    assert library.calls[-1] == Algorithm()


def test_only_what_is_two_of_four_is_compressed(library: Pretended) -> None:
    """Never garbage; -0 is no weight."""
    with pytest.raises(ValueError, match="is not 2:4"):
        raw.compress(weight(NM(3, 4)))
    with pytest.raises(ValueError, match="multiples of 16"):
        raw.compress(weight(shape=(40, 64)))
    held = weight(NM(1, 4))
    held[held == 0] = -0.0
    raw.compress(held)
    assert not library.weights[0][library.weights[0] == 0].signbit().any()


@pytest.mark.parametrize(
    ("pattern", "shape", "reason"),
    [
        (NM(2, 4), (48, 64), None),
        (NM(1, 16), (48, 64), None),
        (NM(4, 8), (48, 64), "cuSPARSELt multiplies 2:4 weights only"),
        (NM(2, 4), (40, 64), "cuSPARSELt takes multiples of 16, not [40, 64]"),
        (NM(2, 4), (48, 64, 1), None),
        (NM(2, 4), (48, 32, 1), "cuSPARSELt multiplies no grouped convolutions"),
        (NM(2, 4), (48, 64, 3), "to copy the patches of k x k convolutions would cost what 2:4 gains"),
    ],
)
def test_what_it_can(monkeypatch: pytest.MonkeyPatch, pattern: NM, shape: tuple[int, ...], reason: str | None) -> None:
    """By the weight's zeros, whatever its pattern is called."""
    held, x = weight(pattern, shape), torch.empty((3, 64) + (8,) * (len(shape) - 2)).bfloat16()
    backend = BACKENDS["cusparselt"]
    assert backend.why_not(held, pattern, x) == "its kernels are for CUDA cards"
    monkeypatch.setattr(Gpu, "_no_cuda", lambda self, weight: None)
    monkeypatch.setattr(torch.backends.cusparselt, "is_available", lambda: False)
    assert backend.why_not(held, pattern, x) == "this torch has no cuSPARSELt"
    monkeypatch.setattr(torch.backends.cusparselt, "is_available", lambda: True)
    assert backend.why_not(held, pattern, x) == reason


def test_the_operator(library: Pretended) -> None:
    """Opcheck; the activation comes after the product; what does not fit is refused, and gradients are."""
    held = weight()
    compressed, bias = raw.compress(held), torch.randn(OUTPUTS).bfloat16()
    x, rest = torch.randn(2, 3, INPUTS).bfloat16(), (OUTPUTS, INPUTS, 0, 1, -1)
    operator = ops.cusparselt_linear
    torch.library.opcheck(operator.default, (x, compressed, bias, *rest, "relu"))
    torch.testing.assert_close(operator(x, compressed, bias, *rest), F.linear(x, held, bias))
    torch.testing.assert_close(operator(x, compressed, bias, *rest, "silu"), F.silu(F.linear(x, held, bias)))
    assert operator(x[:, :0], compressed, bias, *rest).shape == (2, 0, OUTPUTS)
    for wrong in (
        (x.half(), compressed, bias, *rest),
        (x[..., :32], compressed, bias, *rest),
        (x, compressed[:-1], bias, *rest),
        (x, compressed, bias[:-1], *rest),
        (x, compressed, None, 40, INPUTS, 0, 1, -1),
        (x, compressed, bias, *rest, "RELU"),
    ):
        with pytest.raises(ValueError):
            operator(*wrong)
    with pytest.raises(RuntimeError, match="has no gradient"):
        operator(x.requires_grad_(), compressed, bias, *rest)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")
@pytest.mark.parametrize("batch", [1, 17, 512])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_on_a_card(batch: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The true library, by a search and then by what that found."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cusparselt, "_checked", {})
    held = weight(shape=(256, 512)).to("cuda", dtype)
    x, bias = torch.randn(batch, 512, device="cuda").to(dtype), torch.randn(256, device="cuda").to(dtype)
    if (reason := BACKENDS["cusparselt"].why_not(held, NM(2, 4), x)) is not None:
        pytest.skip(reason)
    for _ in range(2):
        cusparselt._checked.clear()
        out = hold(held).linear(x, bias)
        torch.testing.assert_close(
            out.double(), F.linear(x.double(), held.double(), bias.double()), atol=0.1, rtol=0.02
        )
