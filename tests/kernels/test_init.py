"""The dispatch: the compiled kernels where they can work, the reference elsewhere, the same results."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor

from lightning_nm import kernels
from lightning_nm.kernels.convolution import Convolution, memory_format
from lightning_nm.patterns import NM, Block1xN
from lightning_nm.sparse import PackedBlocks, PackedNM
from tests.kernels.cases import DTYPES, weight_of
from tests.oracles import nm_mask_by_hand, raw, split_by_hand


@pytest.fixture
def no_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "compiled_cpu", lambda: None)


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The kernels for a CUDA card serve the CPU, where Triton interprets them."""
    masks = pytest.importorskip("lightning_nm.kernels.triton.masks")
    if not masks.supports(torch.empty(1)):
        pytest.skip("Triton compiles: there is a card")
    monkeypatch.setattr(kernels, "_cuda_for", lambda *_: masks)
    return masks


def split(weight: Tensor) -> tuple[Tensor, Tensor, Tensor, int | Tensor, int | Tensor]:
    """(sparse, hidden, bits, flips, nonfinite) of a copy."""
    weight, hidden = weight.clone(), torch.empty_like(weight)
    bits = torch.zeros(kernels.byte_count(weight.numel()), dtype=torch.uint8)
    return weight, hidden, bits, *kernels.nm_split_(weight, hidden, bits, 2, 4, 1)


def test_with_numba_the_counts_are_integers() -> None:
    """The compiled kernels are the ones that ran."""
    pytest.importorskip("numba")
    *_, flips, nonfinite = split(weight_of("normal", (3, 8), torch.float32))
    assert (type(flips), type(nonfinite)) == (int, int)


@pytest.mark.usefixtures("no_numba")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_without_numba_the_result_is_the_same(dtype: torch.dtype) -> None:
    """Everything works without, at lower speed."""
    weight = weight_of("ties", (3, 8), dtype)
    sparse, hidden = split_by_hand(weight, nm_mask_by_hand(weight, 2, 4))
    got_sparse, got_hidden, _, flips, _ = split(weight)
    assert torch.equal(raw(got_sparse), raw(sparse))
    assert torch.equal(raw(got_hidden), raw(hidden))
    assert type(flips) is int  # nothing waits on a CPU


@pytest.mark.parametrize("block", ["sys.modules['numba'] = None", "sys.meta_path.insert(0, Broken())"])
def test_a_machine_on_which_numba_does_not_import(block: str) -> None:
    """Absent, or installed beside a numpy or a Python that it refuses: both run on the reference."""
    script = f"""
import sys, importlib.machinery
class Broken:  # finds numba, and fails to load it
    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self) if name == "numba" else None
    def create_module(self, spec): return None
    def exec_module(self, module): raise ImportError("Numba needs NumPy 2.3 or less")
{block}
import torch
from lightning_nm import kernels
weight, bits = torch.tensor([[1.0, -3.0, 2.0, 0.5]]), torch.zeros(1, dtype=torch.uint8)
kernels.nm_split_(weight, None, bits, 2, 4, 1)
kernels.resplit_(weight, None, bits)
assert weight.tolist() == [[0.0, -3.0, 2.0, 0.0]], weight
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "gaps"])
def test_any_layout_splits_alike(layout: str) -> None:
    """A weight that is not row-major has the split of its values."""
    rows = weight_of("ties", (4, 8, 3, 3), torch.float32)
    weight = {
        "channels_last": lambda: rows.to(memory_format=torch.channels_last),
        "transposed": lambda: rows.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
        "gaps": lambda: rows.repeat_interleave(2, dim=1)[:, ::2],
    }[layout]()
    bits = torch.zeros(36, dtype=torch.uint8)
    sparse, hidden = split_by_hand(rows, nm_mask_by_hand(rows, 2, 4))
    removed = torch.empty_like(weight)
    kernels.nm_split_(weight, removed, bits, 2, 4, 1)
    assert torch.equal(raw(weight), raw(sparse))
    assert torch.equal(raw(removed), raw(hidden))


def test_hidden_of_another_dtype_is_filled_as_the_reference_does() -> None:
    """A float64 hidden part of a float32 weight holds its values, not its bits."""
    weight = weight_of("normal", (2, 16), torch.float32)
    _, removed = split_by_hand(weight, nm_mask_by_hand(weight, 2, 4))
    hidden = torch.empty(2, 16, dtype=torch.float64)
    kernels.nm_split_(weight, hidden, torch.zeros(4, dtype=torch.uint8), 2, 4, 1)
    assert torch.equal(hidden, removed.double())


@pytest.mark.parametrize("compiled", [True, False])
def test_counting_goes_on(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a split finds is added to the counts that it is given, whoever splits."""
    if not compiled:
        monkeypatch.setattr(kernels, "compiled_cpu", lambda: None)
    weight, bits = torch.tensor([[1.0, 3.0, 2.0, torch.nan]]), torch.tensor([0b1001], dtype=torch.uint8)
    counts = torch.tensor([10, 20])
    kernels.split_(weight.clone(), None, bits, torch.tensor([[True, False, True, False]]), counts)
    assert counts.tolist() == [12, 21]
    flips, nonfinite = kernels.nm_split_(torch.ones(1, 4), None, bits, 2, 4, 1, counts)
    assert (int(flips), int(nonfinite), counts.tolist()) == (14, 21, [14, 21])
    assert int(kernels.resplit_(weight, None, bits, counts)) == 22
    assert counts.tolist() == [14, 22]


def test_a_card_gets_its_own_kernels(interpreted: ModuleType) -> None:
    """Masks, splits and counts are the CPU's, bit for bit."""
    weight = weight_of("ties", (8, 8), torch.float32)
    sparse, hidden = split_by_hand(weight, nm_mask_by_hand(weight, 2, 4))
    got_sparse, got_hidden, bits, flips, nonfinite = split(weight)
    assert torch.equal(raw(got_sparse), raw(sparse))
    assert torch.equal(raw(got_hidden), raw(hidden))
    assert (int(flips), int(nonfinite)) == (32, 0)
    assert torch.equal(kernels.unpack_bits(bits, weight.shape), kernels.nm_mask(weight, 2, 4, 1))


@pytest.mark.parametrize("asked", [{}, {"solver": "exact"}])
def test_a_card_finds_exact_masks_of_2_4(
    interpreted: ModuleType, asked: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transposable ones, like the CPU; what else there is to solve is left to plain torch."""
    weight = weight_of("ties", (8, 16, 3), torch.float32)
    mask = kernels.transposable_mask(weight, 2, 4, 1, 0, **asked)
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "solve", lambda tiles, *_, **__: torch.zeros_like(tiles, dtype=torch.bool))
        for n, m, solver, at_most in ((1, 2, None, False), (2, 4, "fast", False), (2, 4, None, True)):
            assert not kernels.transposable_mask(weight, n, m, 1, 0, solver, at_most).any()
    monkeypatch.setattr(kernels, "_cuda_for", lambda *_: None)
    assert torch.equal(mask, kernels.transposable_mask(weight, 2, 4, 1, 0))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_densify_on_a_card(
    interpreted: ModuleType, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pass where all three lie alike in memory; else plain torch, to the same result."""
    weight, hidden = torch.randn(4, 8, 3, 3).to(memory_format=layout), torch.ones(4, 8, 3, 3).to(memory_format=layout)
    calls, kernel = [], interpreted.densify_
    monkeypatch.setattr(interpreted, "densify_", lambda *given: calls.append(kernel(*given)))
    for grad in (torch.zeros_like(weight), torch.zeros(3, 3, 8, 4).permute(3, 2, 0, 1)):
        dense = weight.clone()
        kernels.densify_(dense, hidden, grad, 0.5)
        assert torch.equal(dense, weight + hidden)
        assert torch.equal(grad, torch.full_like(grad, 0.5))
    assert len(calls) == 1


def test_densify_of_several_dtypes() -> None:
    """A gradient, or a hidden part, of another dtype than the weight."""
    weight, hidden, grad = torch.ones(4).bfloat16(), torch.tensor([1.0, -0.0, 2.0, -0.0]), torch.zeros(4).bfloat16()
    kernels.densify_(weight, hidden, grad, 0.5, torch.tensor(2.0))
    assert weight.tolist() == [2.0, 1.0, 3.0, 1.0]
    assert grad.tolist() == [1.0, 0.0, 2.0, 0.0]


def test_resplit_goes_the_same_way() -> None:
    """The mask in the bits, whoever runs."""
    weight = weight_of("normal", (3, 8), torch.float32)
    mask = nm_mask_by_hand(weight, 1, 4)
    sparse, _ = split_by_hand(weight, mask)
    assert int(kernels.resplit_(weight, None, kernels.pack_bits(mask))) == 0
    assert torch.equal(raw(weight), raw(sparse))


def test_importing_the_kernels_loads_no_numba() -> None:
    """It is loaded at the first split."""
    script = "import sys, lightning_nm.kernels; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], timeout=120).returncode == 0


@pytest.mark.parametrize("solver", [None, "entropic", "fast"])
def test_transposable_masks_whoever_solves(solver: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """With or without numba, in one piece or in many, the same mask."""
    weight = weight_of("ties", (24, 16, 3), torch.float32)
    mask = kernels.transposable_mask(weight, 4, 8, 1, 0, solver)
    monkeypatch.setattr(kernels, "_ENTRIES_AT_ONCE", 3 * 64)
    assert torch.equal(kernels.transposable_mask(weight, 4, 8, 1, 0, solver), mask)
    monkeypatch.setattr(kernels, "compiled_cpu", lambda: None)
    assert torch.equal(kernels.transposable_mask(weight, 4, 8, 1, 0, solver), mask)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
@pytest.mark.parametrize("solver", ["exact", "entropic", "fast"])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (16, 32)])
def test_a_gpu_solves_like_the_cpu(n: int, m: int, solver: str) -> None:
    """Transposable masks are identical on CPU and CUDA."""
    weight = weight_of("ties", (64, 64), torch.float32)
    mask = kernels.transposable_mask(weight, n, m, 1, 0, solver)
    assert torch.equal(kernels.transposable_mask(weight.cuda(), n, m, 1, 0, solver).cpu(), mask)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_gpu_splits_like_the_cpu(dtype: torch.dtype) -> None:
    """Masks are identical on CPU and CUDA, and nothing waits."""
    weight = weight_of("ties", (16, 32, 3), dtype)
    for mine, theirs in zip(split(weight)[:2], split_on_gpu(weight)):
        assert torch.equal(raw(theirs.cpu()), raw(mine))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
def test_a_gpu_densifies_like_the_cpu() -> None:
    """The gradient term and the merge, from float32 to float16."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        mine = [weight_of("normal", (16, 32), dtype) for _ in range(3)]
        theirs = [t.cuda() for t in mine]
        kernels.densify_(*mine, 0.5, torch.tensor(2.0))
        kernels.densify_(*theirs, 0.5, torch.tensor(2.0, device="cuda"))
        for a, b in zip(mine, theirs):
            torch.testing.assert_close(b.cpu(), a)


def split_on_gpu(weight: Tensor) -> tuple[Tensor, Tensor]:
    weight = weight.cuda()
    hidden = torch.empty_like(weight)
    bits = torch.zeros(kernels.byte_count(weight.numel()), dtype=torch.uint8, device="cuda")
    kernels.nm_split_(weight, hidden, bits, 2, 4, 1)
    return weight, hidden


IMAGES = {
    "1d": torch.randn(2, 32, 9),
    "2d": torch.randn(2, 32, 5, 6),
    "2d, channels last": torch.randn(2, 32, 5, 6).to(memory_format=torch.channels_last),
    "3d, channels last": torch.randn(2, 32, 3, 4, 5).to(memory_format=torch.channels_last_3d),
}


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("image", list(IMAGES))
def test_convolutions_of_packed_weights(
    image: str, groups: int, dtype: torch.dtype, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As dense ones: same numbers, dtype and memory format, whether or not groups are whole lanes."""
    if not compiled:
        monkeypatch.setattr(kernels, "compiled_cpu", lambda: None)
    x = IMAGES[image].to(dtype)
    dims = x.dim() - 2
    convolution = Convolution((3,) * dims, (2,) * dims, (1,) * dims, (1,) * dims, groups)
    dense, bias = torch.randn(32, 32 // groups, *convolution.kernel).to(dtype), torch.randn(32).to(dtype)
    nm, blocks = (torch.where(pattern.mask(dense), dense, 0.0) for pattern in (NM(2, 4), Block1xN(8, 0.5)))
    packed, rows = PackedNM.pack(nm, NM(2, 4)), PackedBlocks.pack(blocks, Block1xN(8, 0.5))
    ours = (
        kernels.nm_convolution(x, packed.values, packed.positions, bias, packed.layout, 32, convolution),
        kernels.block_convolution(x, rows.values, rows.inputs, rows.starts, bias, convolution),
    )
    for out, weight in zip(ours, (nm, blocks)):
        expected = convolution.dense(x.double(), weight.double(), bias.double())
        loose = 0.05 if dtype == torch.bfloat16 else 1e-4
        torch.testing.assert_close(out.double(), expected, atol=loose, rtol=loose)
        assert out.dtype == dtype
        assert out.is_contiguous(memory_format=memory_format(x))
