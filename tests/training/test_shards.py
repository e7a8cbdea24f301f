"""Sharded parameters: pieces, wholes and counts, against the same training in one process."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from lightning_nm.training import select, shards
from tests.processes import torchrun
from tests.regimes.matrix import refused, supported


@supported("Without a Trainer", "FSDP2 with tensor parallelism", "hybrid sharding (HSDP)")
def test_pieces_on_a_mesh_train_as_the_whole():
    """Masks, hidden parts, flips and saved state are those of one process, on a 2 x 2 mesh."""
    torchrun("tests/training/shards_run.py", processes=4)


def test_an_ordinary_tensor_is_its_own_piece():
    """Nothing is copied or communicated where nothing is sharded."""
    param = nn.Parameter(torch.randn(4, 8))
    assert not shards.is_sharded(param)
    assert shards.piece(param).data_ptr() == param.data_ptr()
    assert shards.whole(param, param) is param
    assert shards.is_first(param)


def test_versions_change_when_somebody_writes():
    """What `SparseWeight.touched` rests on."""
    param = nn.Parameter(torch.randn(4, 8))
    before = shards.version(param)
    shards.piece(param).mul_(2)
    assert shards.version(param) != before


@refused(
    "Without a Trainer",
    "FSDP1 (`FullyShardedDataParallel`)",
    "FSDP1 (FullyShardedDataParallel) flattens parameters into one vector, which cuts N:M groups anywhere. "
    "Use FSDP2: Lightning's ModelParallelStrategy, or torch.distributed.fsdp.fully_shard",
)
def test_fsdp1_is_refused(tmp_path):
    """Its parameters show no rows any more."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        select(FullyShardedDataParallel(nn.Linear(8, 4), device_id=torch.device("cpu")), "2:4")
    finally:
        dist.destroy_process_group()
