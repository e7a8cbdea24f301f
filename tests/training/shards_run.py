"""Four processes on a 2 x 2 mesh; each compares its pieces with a model that it trains alone. Run by test_shards.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from lightning_nm.training import SRSTE, SSTE, Method, Sparsifier, select, shards
from tests.training.runs import loss_of, noise, one_step, seeded


def build() -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8)))


def tensor_parallel(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Both kinds of cut, along the rows and along the reduction dimension, and FSDP2 over them."""
    parallelize_module(model, mesh["inner"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    return fully_shard(model, mesh=mesh["outer"])  # type: ignore[return-value]


def hybrid(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Two replicas of two pieces."""
    return fully_shard(model, mesh=mesh)  # type: ignore[return-value]


def equal_whole(piece: Tensor, param: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(shards.whole(piece, param), expected, atol=1e-6, rtol=0)


def compare(shard: Callable[[nn.Module], nn.Module], method: Method) -> None:
    alone, shared = build(), shard(build())
    pair = []
    for model in (alone, shared):
        optimizer = torch.optim.AdamW(model.parameters(), 0.05)
        sparsifier = Sparsifier(select(model, "2:4"), method)
        with sparsifier:
            for seed in range(5):
                one_step(model, optimizer, seed)
        # without a backward pass FSDP2 leaves the weights gathered: they must be found again
        with torch.no_grad():
            loss_of(model, 9)
        assert not sparsifier.adopt(select(model, "2:4"))
        pair.append(sparsifier)
    one, many = pair
    for mine, theirs in zip(many.weights, one.weights, strict=True):
        assert shards.is_sharded(mine.param)
        assert mine.values.numel() < theirs.param.numel()
        assert mine.mask is not None
        assert theirs.mask is not None
        assert torch.equal(shards.whole_mask(mine.mask, mine.param).unpack(), theirs.mask.unpack())
        assert mine.kept() == theirs.kept()
        equal_whole(mine.values, mine.param, theirs.param.detach())
        assert mine.hidden is not None
        assert theirs.hidden is not None
        equal_whole(mine.hidden, mine.param, theirs.hidden)
    if any(weight.values.shape[0] < 8 for weight in many.weights):
        # transposable tiles of 8 rows do not fit pieces of 4
        try:
            select(shared, "4:8T")
        except ValueError as error:
            assert "which cut its 4:8T groups: the 4 outputs of one GEMM" in str(error)  # noqa: PT017
        else:
            raise AssertionError("a cut tile was not refused")
    state = many.state_dict()
    flips = one.take_flips()
    assert many.take_flips() == flips
    assert sum(flips.values()) > 0
    # what was saved comes back to the same pieces
    again = Sparsifier(select(shared, "2:4"), method)
    again.load_state_dict(state)
    for mine, theirs in zip(again.weights, many.weights, strict=True):
        assert torch.equal(mine.hidden, theirs.hidden)  # type: ignore[arg-type]
        assert torch.equal(mine.mask.bits, theirs.mask.bits)  # type: ignore[union-attr]
    assert again.take_flips() == flips


def replicated(mesh: DeviceMesh) -> None:
    """Replicated weights and a sharded batch: gradients are partial sums, to which lambda must come once."""
    alone, shared = build(), build()
    for layer in (shared[0], shared[2]):  # type: ignore[index]
        for name, param in list(layer.named_parameters()):
            setattr(layer, name, nn.Parameter(distribute_tensor(param.detach(), mesh, [Replicate()])))
    x = noise(8, 8)
    sparsifiers = []
    for model, batch in ((alone, x), (shared, distribute_tensor(x, mesh, [Shard(0)]))):
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with Sparsifier(select(model, "2:4"), SRSTE(0.5)) as sparsifier:
            for _ in range(4):
                optimizer.zero_grad()
                model(batch).square().mean().backward()
                optimizer.step()
        sparsifiers.append(sparsifier)
    for mine, theirs in zip(sparsifiers[1].weights, sparsifiers[0].weights, strict=True):
        torch.testing.assert_close(mine.hidden, theirs.hidden, atol=1e-6, rtol=0)


if __name__ == "__main__":
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner"))
    for shard in (tensor_parallel, hybrid):
        for method in (SRSTE(0.01), SSTE()):
            compare(partial(shard, mesh=mesh), method)
    replicated(mesh["inner"])
    dist.destroy_process_group()
