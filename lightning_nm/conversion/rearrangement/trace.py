"""Which channels move together, read off the operations that a model runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_nm.conversion.rearrangement.channels import Channels, Ids

Axis = Ids | str
"""What a dimension holds: a channel at each position, or why its positions have fixed places."""
Axes = tuple[Axis, ...]

SINGLE = "one position"
TAPS = "kernel taps"
INPUT = "an input of the network"
OUTPUT = "an output of the network"


class Trace:
    """Labels every tensor of a run with the channels that its dimensions hold.

    Args:
        held: the model's parameters and buffers by name, as the very tensors that a run uses.
    """

    def __init__(self, held: Mapping[str, Tensor]) -> None:
        self.channels = Channels()
        self.groups: dict[int, Ids] = {}
        """Channels among which an order was seen: those of each dimension, of each group in it. Two channels can only
        change places where every one of these holds both or neither."""
        self.held: dict[str, Axes] = {}
        """What the dimensions of the parameters and buffers hold that were used, by name."""
        self._names = WeakTensorKeyDictionary()
        self._labels = WeakTensorKeyDictionary()
        self.failures: list[str] = []
        """Operations whose rules failed; what they met is fixed."""
        self.hold(held)

    def hold(self, held: Mapping[str, Tensor]) -> None:
        """The same parameters and buffers as the tensors of another run: they hold what they held."""
        for name, tensor in held.items():
            self._names[tensor] = name

    def used(self, held: Mapping[str, Tensor]) -> set[str]:
        """Which of the parameters and buffers their run used."""
        return {name for name, tensor in held.items() if tensor in self._labels}

    def axes(self, tensor: Tensor) -> Axes:
        """What the dimensions of ``tensor`` hold."""
        if tensor in self._labels:
            known: Axes = self._labels[tensor]
            return known
        if tensor not in self._names:
            return self.label(tensor, ("a constant inside the model",) * tensor.dim())
        name = self._names[tensor]
        if name not in self.held:
            self.held[name] = tuple(self.channels.new(size) if size > 1 else SINGLE for size in tensor.shape)
        return self.label(tensor, self.held[name])

    def label(self, tensor: Tensor, axes: Axes) -> Axes:
        assert len(axes) == tensor.dim(), f"{len(axes)} labels for {tensor.dim()} dimensions"
        for axis, size in zip(axes, tensor.shape):
            if not isinstance(axis, str):
                assert len(axis) == size, f"{len(axis)} channels for a dimension of {size}"
                # also of a single one: picked out of others, it is told apart from them
                self.group(axis)
            else:
                assert axis != SINGLE or size <= 1, f"a dimension of {size} has no label"
        axes = tuple(axis if size > 1 else SINGLE for axis, size in zip(axes, tensor.shape))
        self._labels[tensor] = axes
        return axes

    def group(self, axis: Axis) -> None:
        """These are seen in an order of their own."""
        if not isinstance(axis, str):
            self.groups[id(axis)] = axis  # kept, so that the id stays its own

    def fix(self, tensor: Tensor, reason: str) -> None:
        """Nothing in ``tensor`` moves."""
        if tensor in self._labels or tensor in self._names:
            for axis in self.axes(tensor):
                self.pin(axis, reason)
        else:
            self.label(tensor, (reason,) * tensor.dim())

    def fix_all(self, tensors: Iterable[Tensor], reason: str) -> None:
        for tensor in tensors:
            self.fix(tensor, reason)

    def pin(self, axis: Axis, reason: str) -> None:
        if not isinstance(axis, str):
            self.channels.pin(axis, reason)

    def join(self, a: Axis, b: Axis) -> Axis:
        """Two dimensions whose positions correspond, one to one or one to all (broadcasting)."""
        if a is b or (isinstance(b, str) and b == SINGLE):
            return a
        if isinstance(a, str) and a == SINGLE:
            return b
        if isinstance(a, str):
            self.pin(b, a)
            return a
        if isinstance(b, str):
            self.pin(a, b)
            return b
        if len(a) != len(b):
            self.pin(a, "its dimension met one of another size")
            self.pin(b, "its dimension met one of another size")
            return "its dimension met one of another size"
        self.channels.join(a, b)
        return a

    def broadcast(self, operands: Sequence[Axes]) -> Axes:
        """Operands aligned at their last dimensions, as elementwise operations do."""
        dims = max(map(len, operands), default=0)
        joined: list[Axis] = [SINGLE] * dims
        for axes in operands:
            for d, axis in enumerate(axes, start=dims - len(axes)):
                joined[d] = self.join(joined[d], axis)
        return tuple(joined)
