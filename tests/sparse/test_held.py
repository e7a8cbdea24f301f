"""The tensor that stands for a weight: products are dispatched, and everything else sees the dense weight."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from lightning_nm.sparse import accelerate
from lightning_nm.sparse.held import HeldWeight
from tests.sparse.models import Conv1D, accelerated, assert_near, backends_of, in_double, linear, sparse

Mode = Callable[[], AbstractContextManager[Any]]
MODES = [torch.no_grad, torch.inference_mode]


def assert_accelerated(model: nn.Module, x: Tensor, backend: str) -> None:
    """The model gives what it does in float64, to its precision, and every weight was multiplied by the backend."""
    with torch.no_grad():
        exact, dense = in_double(model, x), model(x)
        acceleration = accelerated(model, backend=backend)
        out = model(x)
    assert out.dtype == dense.dtype
    assert_near(out, exact)
    assert acceleration.sparse
    assert backends_of(acceleration) == {name: {backend} for name in acceleration.sparse}


# -- products ------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_linear(data: st.DataObject) -> None:
    """Any size, pattern, batch and strides, by any number of threads: what float64 gives."""
    pattern = data.draw(st.sampled_from(["2:4", "1:4", "1:8", "3:7", "1:32", "1x4@0.5", "1x16@0.75", "2:4V8"]))
    inputs = {"3:7": 7, "1:32": 32}.get(pattern, 8) * data.draw(st.integers(1, 9))
    outputs = {"1x16@0.75": 16, "1x4@0.5": 4, "2:4V8": 8}.get(pattern, 1) * data.draw(st.integers(1, 9))
    layer = linear(inputs, outputs, pattern, bias=data.draw(st.booleans()))
    shape = data.draw(st.sampled_from([(), (1,), (2,), (17,), (65,), (2, 3), (1, 1, 5)]))
    x = data.draw(st.sampled_from(STRIDES))(torch.randn(*shape, inputs))
    threads, backend = data.draw(st.sampled_from([1, 2, 3])), data.draw(st.sampled_from(["cpu", "onednn", "dense"]))
    exact = in_double(layer, x)
    accelerate(layer, backend=backend)
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            assert_near(layer(x), exact)
    finally:
        torch.set_num_threads(1)


STRIDES: list[Callable[[Tensor], Tensor]] = [
    lambda x: x,
    lambda x: x.repeat_interleave(2, -1)[..., ::2],  # a stride within rows
    lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],  # a stride between rows
    lambda x: x.movedim(-1, 0).contiguous().movedim(0, -1),
    lambda x: x[..., :1].expand(x.shape),
    lambda x: torch.complex(x, x).conj().imag,  # stored with its sign turned
]


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_any_convolution(data: st.DataObject) -> None:
    """Any dimensions, kernel, stride, padding, dilation, groups, memory format and batch: what float64 gives."""
    dims = data.draw(st.integers(1, 3))
    layer_of = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    pattern = data.draw(st.sampled_from(["2:4", "1:4", "1:8", "1x4@0.5", "1x16@0.5"]))
    groups, kernel = data.draw(st.sampled_from([1, 1, 2])), data.draw(st.tuples(*[st.integers(1, 3)] * dims))
    stride, dilation = (data.draw(st.tuples(*[st.integers(1, 2)] * dims)) for _ in range(2))
    same = st.just("same") if set(stride) == {1} else st.nothing()
    padding = data.draw(st.one_of(st.tuples(*[st.integers(0, 2)] * dims), st.integers(0, 2), st.just("valid"), same))
    mode = data.draw(st.sampled_from(["zeros", "zeros", "reflect", "circular", "replicate"]))
    torch.manual_seed(0)
    bias = data.draw(st.booleans())
    layer = layer_of(
        8 * groups,
        16 * groups,
        kernel,
        stride,
        padding,
        dilation,
        groups,
        bias,
        mode if padding != "valid" else "zeros",
    )
    sparse(layer, pattern)
    x = torch.randn(*data.draw(st.sampled_from([(), (1,), (3,)])), 8 * groups, *range(7, 7 + dims))
    last = {2: torch.channels_last, 3: torch.channels_last_3d}.get(dims)
    if last is not None and data.draw(st.booleans()):
        layer.to(memory_format=last)
    if last is not None and x.dim() == dims + 2 and data.draw(st.booleans()):
        x = x.contiguous(memory_format=last)
    with torch.no_grad():
        exact, dense = in_double(layer, x), layer(x)
        accelerate(layer, backend=data.draw(st.sampled_from(["cpu", "dense", "onednn"])))
        out = layer(x)
    assert_near(out, exact)
    if dims < 3 and x.dim() == dims + 2 and min(out.shape) > 1:  # in three it depends on who multiplies in torch
        assert out.stride() == dense.stride()


@pytest.mark.parametrize("backend", ["cpu", "onednn", "dense"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: (nn.Conv1d(16, 32, 3, padding=1), torch.randn(2, 16, 9)),
        lambda: (nn.Conv2d(16, 32, 3, padding="same"), torch.randn(2, 16, 9, 8)),
        lambda: (nn.Conv3d(16, 32, (1, 2, 3), stride=2), torch.randn(2, 16, 5, 6, 7)),
        lambda: (nn.Conv2d(16, 32, 1), torch.randn(16, 9, 8)),
        lambda: (Conv1D(32, 64), torch.randn(2, 3, 32)),
        lambda: (nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)), torch.randn(5, 32)),
    ],
)
def test_layers(make: Any, backend: str) -> None:
    """Each reaches the backend that was asked for."""
    torch.manual_seed(0)
    layer, x = make()
    if backend == "onednn" and isinstance(layer, nn.Conv1d):
        pytest.skip("oneDNN prepacks none")
    assert_accelerated(sparse(layer), x, backend)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backend", ["cpu", "auto"])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(
    ("layer", "x", "call"),
    [
        ({}, "self", {}),
        ({"bias": False}, "self", {"need_weights": False}),
        ({}, "self", {"average_attn_weights": False}),
        ({}, "self", {"key_padding_mask": torch.tensor([[0, 0, 0, 1, 1], [0] * 5]).bool()}),
        ({}, "self", {"attn_mask": torch.ones(5, 5).triu(1).bool()}),
        ({}, "cross", {}),
        ({"add_bias_kv": True, "add_zero_attn": True}, "cross", {}),
        ({"kdim": 32, "vdim": 16}, "cross", {}),
    ],
)
def test_attention(layer: Any, x: str, call: Any, batch_first: bool, backend: str, mode: Mode) -> None:
    """Its projections, stacked or not, for itself and across; masks, weights and layouts are torch's."""
    torch.manual_seed(0)
    attention = sparse(nn.MultiheadAttention(64, 4, batch_first=batch_first, **layer))
    query, key = torch.randn(2, 5, 64), torch.randn(2, 7, layer.get("kdim", 64))
    value = torch.randn(2, 7, layer.get("vdim", 64))
    if not batch_first:
        query, key, value = (each.transpose(0, 1) for each in (query, key, value))
    if x == "self":
        key = value = query
    out, weights = in_double(attention, query, key, value, **call)
    acceleration = accelerated(attention, backend=backend)
    with mode():
        mine = attention(query, key, value, **call)
    assert_near(mine[0], out)
    assert (mine[1] is None) == (weights is None)
    if weights is not None:
        assert_near(mine[1], weights)
    assert all(acceleration.choices.values())
    if backend == "cpu":
        assert set().union(*backends_of(acceleration).values()) == {"cpu"}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("norm_first", [False, True])
def test_transformer_layers(norm_first: bool, mode: Mode) -> None:
    """Encoder and decoder: every weight reaches the kernels, torch's fused paths notwithstanding."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"batch_first": True, "norm_first": norm_first}
    encoder = sparse(nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 96, **sizes), 2))
    decoder = sparse(nn.TransformerDecoder(nn.TransformerDecoderLayer(64, 4, 96, **sizes), 2))
    x, memory = torch.randn(3, 5, 64), torch.randn(3, 4, 64)
    for model, inputs in ((encoder, (x,)), (decoder, (x, memory))):
        exact = in_double(model, *inputs)
        acceleration = accelerated(model)
        with mode():
            assert_near(model(*inputs), exact)
        assert backends_of(acceleration) == {name: {"cpu"} for name in acceleration.sparse}


def test_padding_of_an_encoder() -> None:
    """Where there is something, what torch gives; what torch's fused path makes zero is what its plain one gives."""
    torch.manual_seed(0)
    encoder = sparse(nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 96, batch_first=True), 2))
    x, padded = torch.randn(3, 5, 64), torch.tensor([[0, 0, 0, 1, 1], [0] * 5, [0, 0, 0, 0, 1]]).bool()
    with torch.no_grad():
        expected = encoder(x, src_key_padding_mask=padded)
        accelerated(encoder)
        assert_near(encoder(x, src_key_padding_mask=padded)[~padded], expected[~padded])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    """Half precision by the kernels, double by torch."""
    for layer, x in ((linear(), torch.randn(5, 64)), (sparse(nn.Conv2d(8, 16, 3)), torch.randn(2, 8, 6, 5))):
        layer, x = layer.to(dtype), x.to(dtype)
        exact = in_double(layer, x)
        acceleration = accelerated(layer)
        with torch.no_grad():
            out = layer(x)
        assert out.dtype == dtype
        assert_near(out, exact)
        assert backends_of(acceleration) == {"weight": {"dense" if dtype == torch.float64 else "cpu"}}


@pytest.mark.parametrize(
    "make",
    [
        lambda: (linear(), torch.randn(5, 64)),
        lambda: (sparse(nn.Conv2d(8, 16, 3)), torch.randn(2, 8, 6, 5)),
        lambda: (sparse(Conv1D(32, 16)), torch.randn(5, 32)),
        lambda: (sparse(nn.TransformerEncoderLayer(64, 4, 96, batch_first=True)), torch.randn(2, 5, 64)),
        lambda: (linear().double(), torch.randn(5, 64).double()),
        lambda: (linear().bfloat16(), torch.randn(5, 64)),
    ],
)
def test_autocast(make: Any) -> None:
    """The dtypes and numbers that torch gives; the weight is cast once."""
    torch.manual_seed(0)
    model, x = make()
    torch.backends.mha.set_fastpath_enabled(False)  # which rounds in other places
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model(x)
        torch.backends.mha.set_fastpath_enabled(True)
        acceleration = accelerated(model)
        out = model(x)
    assert out.dtype == expected.dtype
    torch.testing.assert_close(out, expected, atol=0.05, rtol=0.05)
    expected_backend = "dense" if x.dtype == torch.float64 else "cpu"
    assert set().union(*backends_of(acceleration).values()) == {expected_backend}


@pytest.mark.parametrize("shape", [(0, 64), (2, 0, 64)])
@pytest.mark.parametrize("backend", ["cpu", "onednn", "auto"])
def test_empty_batches(backend: str, shape: tuple[int, ...]) -> None:
    """Nothing comes out, in the right shape; of convolutions too."""
    layer, filters = linear(), sparse(nn.Conv2d(8, 16, 3))
    for model in (layer, filters):
        accelerated(model, backend=backend)
    with torch.no_grad():
        assert layer(torch.randn(shape)).shape == (*shape[:-1], 32)
        assert filters(torch.randn(0, 8, 6, 5)).shape == (0, 16, 4, 3)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_inputs_that_are_not_finite(bad: float) -> None:
    """Other rows are what they are; where a stored weight meets it the result is not finite, as torch has it."""
    layer, x = linear(), torch.randn(4, 64)
    x[1, 5] = bad
    expected = in_double(layer, x)
    accelerated(layer)
    with torch.no_grad():
        out = layer(x)
    assert_near(out[[0, 2, 3]], expected[[0, 2, 3]])
    met = layer.weight.detach()[:, 5] != 0
    assert not out[1, met].isfinite().any()
    assert out[1, ~met].isfinite().all()


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(3, 63),
        torch.randn(3, 64, dtype=torch.float64),
        torch.ones(3, 64, dtype=torch.long),
        torch.tensor(1.0),
        torch.randn(3, 64, dtype=torch.complex64),
        torch.empty(3, 64, device="meta"),
    ],
)
def test_inputs_that_do_not_fit(x: Tensor) -> None:
    """Get torch's own error."""
    layer = linear()
    with torch.no_grad():
        with pytest.raises(Exception) as expected:
            layer(x)
        accelerated(layer)
        with pytest.raises(type(expected.value)) as raised:
            layer(x)
    assert str(raised.value) == str(expected.value)


@pytest.mark.parametrize(
    ("x", "kwargs"),
    [
        (torch.randn(1, 15, 9, 9), {}),
        (torch.randn(16, 9), {}),
        (torch.randn(1, 16, 9, 9), {"padding": "same", "stride": 2}),
        (torch.randn(1, 16, 9, 9), {"padding": "around"}),
        (torch.randn(1, 16, 9, 9), {"groups": 3}),
        (torch.randn(1, 16, 9, 9).double(), {}),
        (torch.randn(1, 16, 2, 2), {}),
        (torch.randn(1, 48, 9, 9), {"groups": 3}),
        (torch.randn(1, 16, 9, 9), {"padding": -1}),
        (torch.randn(1, 16, 9, 9), {"stride": 0}),
        (torch.randn(1, 16, 9, 9), {"dilation": 0}),
        (torch.randn(1, 16, 9, 9), {"stride": (1, 1, 1)}),
    ],
)
def test_convolutions_that_do_not_fit(x: Tensor, kwargs: Any) -> None:
    """Get torch's own error."""
    layer = sparse(nn.Conv2d(16, 32, 3, bias=False))
    with torch.no_grad():
        with pytest.raises(RuntimeError) as expected:
            F.conv2d(x, layer.weight, **kwargs)
        accelerated(layer)
        with pytest.raises(RuntimeError) as raised:
            F.conv2d(x, layer.weight, **kwargs)
    assert str(raised.value) == str(expected.value)


def test_inputs_of_other_kinds() -> None:
    """Sparse, nested and mkldnn tensors are torch's to multiply; a bias that is broadcast, too."""
    layer, x = linear(), torch.randn(3, 64)
    weight = layer.weight
    accelerated(layer)
    with torch.no_grad():
        exact = F.linear(x, weight, layer.bias)
        for other in (x.to_sparse(), x.to_sparse_csr(), torch.nested.nested_tensor([x, x[:2]])):
            out = layer(other)
            assert_near(out.unbind()[0] if out.is_nested else out, exact)
        assert_near(F.linear(x, layer.weight, torch.ones(1)), F.linear(x, weight, torch.ones(1)))


# -- gradients -----------------------------------------------------------------------------------------


def test_gradients_arrive_in_the_very_parameter() -> None:
    """With gradients on torch multiplies, and the report says so; an optimizer trains the model's own weight."""
    layer, x = linear(), torch.randn(5, 64)
    param, twin = layer.weight, copy.deepcopy(layer)
    acceleration = accelerated(layer)
    layer(x).square().sum().backward()
    twin(x).square().sum().backward()
    assert param.grad is not None
    assert torch.equal(param.grad, twin.weight.grad)
    assert layer.weight.grad is param.grad
    assert "gradients were on" in acceleration.report()


def test_trained_while_held() -> None:
    """Each step is seen by the next evaluation: nothing multiplies by what was packed before it."""
    layer, x = linear(), torch.randn(5, 64)
    accelerated(layer)
    optimizer = torch.optim.AdamW(layer.parameters(), 0.1)
    for _ in range(3):
        with torch.no_grad():
            assert_near(layer(x), in_double(layer, x))
        layer(x).square().sum().backward()
        optimizer.step()
    with torch.no_grad():
        assert_near(layer(x), in_double(layer, x))


def test_gradients_of_inputs() -> None:
    """Where only the input asks for them."""
    layer, x = linear().requires_grad_(False), torch.randn(5, 64, requires_grad=True)
    weight = layer.weight
    accelerated(layer)
    layer(x).sum().backward()
    assert x.grad is not None
    assert_near(x.grad, weight.sum(0).expand(5, 64))


def test_transforms_of_functions() -> None:
    """Forward gradients, vmap, jvp and functional_call are as without us."""
    layer, x, tangent = linear(), torch.randn(5, 64), torch.randn(5, 64)
    other = {"weight": torch.randn(32, 64), "bias": torch.zeros(32)}
    along = tangent @ layer.weight.T
    accelerated(layer)
    with torch.no_grad():
        expected = in_double(layer, x)
        assert_near(torch.vmap(layer)(x), expected)
        assert_near(torch.func.jvp(layer, (x,), (tangent,))[1], along)
        assert_near(torch.func.functional_call(layer, other, x), x @ other["weight"].T)
        with forward_ad.dual_level():
            assert_near(forward_ad.unpack_dual(layer(forward_ad.make_dual(x, tangent))).tangent, along)
        assert_near(layer(x), expected)
    assert torch.func.grad(lambda x: layer(x).sum())(x).shape == x.shape


# -- everything else sees the dense weight ---------------------------------------------------------------


@pytest.fixture
def held() -> tuple[nn.Linear, nn.Parameter]:
    """An accelerated layer and its own weight."""
    layer = linear()
    weight = layer.weight
    accelerated(layer)
    assert type(layer.weight) is HeldWeight
    return layer, weight


def test_looks_like_the_parameter(held: Any) -> None:
    """Kind, sizes, text, memory and numbers."""
    layer, weight = held
    stands = layer.weight
    assert isinstance(stands, nn.Parameter)
    assert repr(stands) == repr(weight)
    assert str(stands) == str(weight)
    assert stands.data_ptr() == weight.data_ptr()
    for look in ("shape", "dtype", "device", "requires_grad", "is_leaf", "layout", "ndim", "nbytes", "grad"):
        assert getattr(stands, look) == getattr(weight, look), look
    for ask in ("numel", "stride", "dim", "size", "is_contiguous", "element_size", "tolist"):
        assert getattr(stands, ask)() == getattr(weight, ask)(), ask
    assert len(stands) == len(weight)
    assert torch.equal(stands.data, weight.data)
    assert type(stands + 1) is type(stands.detach()) is type(stands[0]) is type(stands.T) is Tensor


def test_state_dict(held: Any) -> None:
    """Promise 3: the dense model's keys, shapes and dtypes, and its very memory."""
    layer, weight = held
    state = layer.state_dict()
    assert list(state) == ["weight", "bias"]
    assert type(state["weight"]) is Tensor
    assert state["weight"].data_ptr() == weight.data_ptr()
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    plain = nn.Linear(64, 32)
    plain.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(plain.weight, weight)


def test_parameters(held: Any) -> None:
    """As many, under the same names; what is done to them all is done to the weight."""
    layer, weight = held
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]
    assert sum(param.numel() for param in layer.parameters()) == 64 * 32 + 32
    layer.requires_grad_(False)
    assert not weight.requires_grad
    assert torch.nn.utils.parameters_to_vector(layer.parameters()).shape == (64 * 32 + 32,)


@pytest.mark.parametrize(
    "duplicate",
    [
        copy.deepcopy,
        lambda model: pickle.loads(pickle.dumps(model)),
        lambda model: _saved_and_loaded(model),
    ],
)
def test_copies(held: Any, duplicate: Callable[[nn.Module], nn.Module]) -> None:
    """Copied, pickled or saved whole: a plain model with a weight of its own."""
    layer, weight = held
    twin = duplicate(layer)
    assert type(twin.weight) is nn.Parameter
    assert torch.equal(twin.weight, weight)
    assert twin.weight.data_ptr() != weight.data_ptr()


def _saved_and_loaded(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


WRITES: dict[str, Callable[[nn.Linear], Any]] = {
    "load_state_dict": lambda layer: layer.load_state_dict(linear(pattern="1:4").state_dict()),
    "load_state_dict, assigned": lambda layer: layer.load_state_dict(linear(pattern="1:4").state_dict(), assign=True),
    "in place": lambda layer: layer.weight.mul_(-2),
    "an entry": lambda layer: layer.weight[3].fill_(1),
    "init": lambda layer: nn.init.normal_(layer.weight),
    "another memory": lambda layer: setattr(layer.weight, "data", torch.randn(32, 64)),
    "another parameter": lambda layer: setattr(layer, "weight", nn.Parameter(torch.randn(32, 64))),
    "zeros": lambda layer: layer.weight.zero_(),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("mode", MODES)
def test_writes_are_seen(held: Any, write: str, mode: Mode) -> None:
    """What was packed before is never multiplied again."""
    layer, weight = held
    x, aside = torch.randn(5, 64), weight.detach().clone()
    with mode():
        layer(x)
    with torch.no_grad():
        WRITES[write](layer)
    assert not torch.equal(layer.weight, aside)
    exact = in_double(layer, x)
    with mode():
        assert_near(layer(x), exact)


def test_written_in_inference_mode(held: Any) -> None:
    """As evaluation loops could."""
    layer, _ = held
    x = torch.randn(5, 64)
    with torch.inference_mode():
        layer(x)
        layer.weight.mul_(3)
        out = layer(x)
    assert_near(out, in_double(layer, x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_cast_while_held(held: Any, dtype: torch.dtype) -> None:
    """`model.to(dtype)`: the weight itself is cast, and packed anew."""
    layer, weight = held
    x = torch.randn(5, 64)
    with torch.no_grad():
        layer(x)
        layer.to(dtype)
        assert layer.weight.dtype == weight.dtype == dtype
        out = layer(x.to(dtype))
    assert out.dtype == dtype
    assert_near(out, in_double(layer, x.to(dtype)))


def test_moved_while_held(held: Any) -> None:
    """To another device, here meta: torch multiplies there."""
    layer, _ = held
    layer.to("meta")
    assert layer.weight.is_meta
    with torch.no_grad():
        assert layer(torch.randn(5, 64, device="meta")).shape == (5, 32)


def test_made_in_inference_mode() -> None:
    """Such weights count no versions."""
    with torch.inference_mode():
        layer, x = linear(), torch.randn(5, 64)
        expected = layer(x)
        acceleration = accelerated(layer)
        assert_near(layer(x), expected)
    assert backends_of(acceleration) == {"weight": {"cpu"}}


@pytest.mark.parametrize(
    "export",
    [
        lambda layer, x: torch.jit.trace(layer, x),
        lambda layer, x: torch.export.export(layer, (x,)),
        lambda layer, x: torch.export.export(layer, (x,), strict=True),
    ],
)
def test_export_is_refused(held: Any, export: Callable[..., Any]) -> None:
    """With what to do: programs and traces want the model's own parameters, and restored models give them."""
    layer, _ = held
    x = torch.randn(5, 64)
    with torch.no_grad(), pytest.raises(Exception, match=r"restore\(\) the accelerated one first"):
        export(layer, x)
