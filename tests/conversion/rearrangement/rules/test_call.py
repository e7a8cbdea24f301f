"""Calls: their arguments by name, and which rule is asked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_nm.conversion.rearrangement.rules import call as module
from lightning_nm.conversion.rearrangement.rules.call import Call, observe, rule, rule_like
from lightning_nm.conversion.rearrangement.trace import Axes, Trace

aten = torch.ops.aten


def call(op: Any, *args: Any, trace: Trace | None = None, **kwargs: Any) -> Call:
    return Call(trace or Trace({}), op, args, kwargs, [])


def observed(trace: Trace, op: Any, *args: Any, **kwargs: Any) -> Any:
    """What ``op`` gives, labelled."""
    out = op(*args, **kwargs)
    observe(trace, op, args, kwargs, out)
    return out


def labelled(*shape: int) -> tuple[Trace, Tensor, Axes]:
    """A tensor with channels in every dimension."""
    trace, x = Trace({}), torch.rand(shape)
    return trace, x, trace.label(x, tuple(trace.channels.new(size) for size in shape))


def reasons(trace: Trace) -> set[str]:
    return set(trace.channels.reasons().values())


@pytest.fixture(autouse=True)
def own_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules of these tests are gone after them."""
    monkeypatch.setattr(module, "_RULES", dict(module._RULES))
    monkeypatch.setattr(module, "_BY_PATTERN", list(module._BY_PATTERN))


def test_arguments_have_names() -> None:
    """Given by position, by keyword, or left to their default."""
    x = torch.randn(2, 3)
    found = call(aten.sum.dim_IntList, x, [1], dtype=torch.float64)
    assert found["self"] is x
    assert (found["dim"], found["keepdim"], found["dtype"]) == ([1], False, torch.float64)


def test_arguments_that_an_operation_does_not_have() -> None:
    """Variants of an operation have different ones: `get` asks whether, indexing insists."""
    found = call(aten.relu.default, torch.randn(2))
    assert found.get("dim") is None
    with pytest.raises(KeyError, match="dim"):
        found["dim"]


@pytest.mark.parametrize(
    ("op", "name"),
    [
        (aten.relu.default, "relu"),
        (aten.relu_.default, "relu"),
        (aten.add.Tensor, "add"),
        (aten._softmax.default, "_softmax"),
        (torch.ops.prims.add.default, "add"),
    ],
    ids=str,
)
def test_names(op: Any, name: str) -> None:
    """Without namespace and variant, in place or not."""
    argument = torch.randn(2)
    assert call(op, argument).name == name


def test_tensors_are_in_the_order_of_the_arguments() -> None:
    """However they were given; numbers are none."""
    added, first, second = torch.randn(2, 2), torch.randn(2, 3), torch.randn(3, 2)
    found = call(aten.addmm.default, added, mat2=second, mat1=first, beta=2)
    assert [id(tensor) for tensor in found.tensors] == [id(added), id(first), id(second)]


def test_tensors_in_lists() -> None:
    """All of them, with those that are absent left out."""
    x, at = torch.randn(2, 3), torch.tensor([0])
    assert [id(tensor) for tensor in call(aten.index.Tensor, x, [None, at]).tensors] == [id(x), id(at)]


def test_the_first_tensor() -> None:
    """By whatever name, also in a list."""
    x, y = torch.randn(2), torch.randn(2)
    assert call(aten.cat.default, [x, y]).first is x
    assert call(aten.native_layer_norm.default, x, [2], None, None, 1e-5).first is x


@pytest.mark.parametrize(
    ("dim", "of", "expected"),
    [
        (None, 3, [0, 1, 2]),
        ([], 3, [0, 1, 2]),
        ([0, -1], 3, [0, 2]),
        ([0], 3, [0]),
        ([-1], 0, []),
        (None, 0, []),
    ],
)
def test_dimensions_count_from_the_front(dim: list[int] | None, of: int, expected: list[int]) -> None:
    """All where none is named; a number has none, even if one is named."""
    assert call(aten.sum.dim_IntList, torch.randn((2,) * of), dim).dims("dim", of) == expected


@pytest.mark.parametrize(("dim", "of", "expected"), [(0, 3, [0]), (-1, 3, [2]), (-1, 0, [])])
def test_a_dimension_counts_from_the_front(dim: int, of: int, expected: list[int]) -> None:
    """Where an operation takes a single one."""
    assert call(aten.cumsum.default, torch.randn((2,) * of), dim).dims("dim", of) == expected


def test_dimensions_that_cannot_be_named() -> None:
    """An operation without the argument goes over all."""
    assert call(aten.max.default, torch.randn(2, 3)).dims("dim", 2) == [0, 1]


def test_what_arguments_hold() -> None:
    """By name."""
    trace, x, axes = labelled(2, 3)
    found = call(aten.add.Tensor, torch.randn(3), x, trace=trace)
    assert all(a is b for a, b in zip(found.axes("other"), axes, strict=True))


def test_a_vector_belongs_to_channels() -> None:
    """The bias of a layer moves with its outputs."""
    bias = torch.randn(4)
    trace = Trace({"bias": bias})
    outputs = trace.channels.new(4)
    call(aten.linear.default, torch.randn(2, 3), torch.randn(4, 3), bias, trace=trace).join("bias", outputs)
    assert np.array_equal(trace.channels.find(trace.axes(bias)[0]), trace.channels.find(outputs))


@pytest.mark.parametrize("argument", ["bias", "running_mean"])
def test_a_vector_that_is_absent(argument: str) -> None:
    """None, or no such argument: nothing is joined."""
    trace = Trace({})
    outputs = trace.channels.new(4)
    call(aten.linear.default, torch.randn(2, 3), torch.randn(4, 3), trace=trace).join(argument, outputs)
    assert not trace.held
    assert not reasons(trace)


def test_rules_label_outputs() -> None:
    """Each output its own, in their order; the rule sees all of them."""
    trace, x, _ = labelled(2, 3)

    @rule("var_mean")
    def numbered(call: Call) -> list[Axes]:
        return [(f"output {i}",) for i in range(len(call.outputs))]

    var, mean = observed(trace, aten.var_mean.correction, x, [0])
    assert trace.axes(var) == ("output 0",)
    assert trace.axes(mean) == ("output 1",)


def test_outputs_in_a_list() -> None:
    """As operations give them that divide a tensor."""
    trace, x, (rows, _) = labelled(2, 3)
    first, second = observed(trace, aten.unbind.int, x, 1)[:2]
    assert trace.axes(first)[0] is rows
    assert trace.axes(second)[0] is rows


def test_outputs_that_are_no_tensors() -> None:
    """Numbers and what is absent are not labelled."""
    trace, x, _ = labelled(3)
    observe(trace, aten._local_scalar_dense.default, (x[0],), {}, 1.0)
    observe(trace, aten.relu.default, (x,), {}, (None, 2))
    assert not reasons(trace)


def test_outputs_without_a_label() -> None:
    """They are fixed, and the reason names the operation; what has a label is not."""
    trace, x, _ = labelled(2, 3)

    @rule("var_mean")
    def first_only(call: Call) -> list[Axes]:
        return [("first",)]

    var, mean = observed(trace, aten.var_mean.correction, x, [0])
    assert trace.axes(var) == ("first",)
    assert trace.axes(mean) == ("a side result of aten.var_mean.correction",)


def test_an_operation_without_a_rule() -> None:
    """Everything that it meets stays, in lists too, and the reason names it."""
    trace, x, axes = labelled(2, 3)
    y = torch.rand(3)
    other = trace.label(y, (trace.channels.new(3),))
    observe(trace, aten._foreach_add_.List, ([x], [y]), {}, None)
    found = trace.channels.reasons()
    assert set(found) == {int(i) for axis in (*axes, *other) for i in axis}
    assert set(found.values()) == {"aten._foreach_add_.List is not known to keep channels apart"}


def test_the_result_of_an_operation_without_a_rule() -> None:
    """It has fixed places, so that what meets it later stays too."""
    trace, x, _ = labelled(3, 3)
    assert trace.axes(observed(trace, aten.det.default, x.expand(2, 3, 3).clone())) == (
        "a side result of aten.det.default",
    )


def test_operations_on_each_element_need_no_rule() -> None:
    """Torch says which they are."""
    trace, x, axes = labelled(2, 3)
    assert "digamma" not in module._RULES
    y = observed(trace, aten.digamma.default, x)
    assert all(a is b for a, b in zip(trace.axes(y), axes, strict=True))
    assert not reasons(trace)


def test_an_operation_in_place_has_the_rule_of_the_other() -> None:
    """And gives its tensor a new label."""
    trace, x, _ = labelled(3)

    @rule("relu")
    def own(call: Call) -> list[Axes]:
        return [("relu",)]

    observed(trace, aten.relu_.default, x)
    assert trace.axes(x) == ("relu",)


def test_a_rule_for_several_names() -> None:
    """The function itself stays what it was."""

    def own(call: Call) -> list[Axes]:
        return [(call.name,)]

    assert rule("det", "logdet")(own) is own
    for op in (aten.det.default, aten.logdet.default):
        trace, x, _ = labelled(2, 3, 3)
        assert trace.axes(observed(trace, op, x)) == (op._schema.name.removeprefix("aten::"),)


def test_a_rule_for_names_that_match() -> None:
    """Whole names only: one that goes on has no rule."""

    def own(call: Call) -> list[Axes]:
        return [("matched",)]

    assert rule_like("(log)?det|slog")(own) is own
    for op, matched in ((aten.det.default, True), (aten.logdet.default, True), (aten.slogdet.default, False)):
        trace, x, _ = labelled(2, 3, 3)
        out = observed(trace, op, x)
        assert (trace.axes(out[0] if isinstance(out, tuple) else out) == ("matched",)) is matched


def test_which_rule_goes_first() -> None:
    """That of the name, then what torch says of elements, then that of a pattern; of patterns the first."""
    for label in ("first pattern", "second pattern"):
        rule_like("digamma|det")(lambda call, label=label: [(label,) * call.outputs[0].dim()])
    trace, x, (channels,) = labelled(3)
    assert trace.axes(observed(trace, aten.digamma.default, x))[0] is channels
    assert trace.axes(observed(trace, aten.det.default, torch.rand(2, 3, 3))) == ("first pattern",)
    rule("digamma", "det")(lambda call: [("name",) * call.outputs[0].dim()])
    assert trace.axes(observed(trace, aten.digamma.default, x)) == ("name",)
    assert trace.axes(observed(trace, aten.det.default, torch.rand(2, 3, 3))) == ("name",)


def test_a_rule_that_fails() -> None:
    """Costs the channels that it meets, whatever it labelled before; and is told."""

    @rule("relu")
    def wrong(call: Call) -> list[Axes]:
        return [()]

    trace, x, _ = labelled(2, 3)
    y = observed(trace, aten.relu.default, x)
    reason = "aten.relu.default is not known to keep channels apart"
    assert trace.axes(y) == (reason, reason)
    assert reasons(trace) == {reason}
    assert trace.failures == ["aten.relu.default: AssertionError: 0 labels for 2 dimensions"]
