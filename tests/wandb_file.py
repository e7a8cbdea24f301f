"""Reads an offline W&B run file: the log format of LevelDB around protobuf records."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32768, 7


def _records(data: bytes) -> Iterator[bytes]:
    at, parts = HEADER, b""  # the file begins with 7 bytes of its own
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:  # too little is left of the block for another chunk
            at += BLOCK - at % BLOCK
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        parts += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):  # a whole record, or the last chunk of one
            yield parts
            parts = b""


def history(run_folder: Path) -> list[dict[str, Any]]:
    """Every logged row of the run, key -> JSON text."""
    from wandb.proto.wandb_internal_pb2 import Record

    rows = []
    (file,) = run_folder.glob("*.wandb")
    for raw in _records(file.read_bytes()):
        record = Record.FromString(raw)
        if record.HasField("history"):
            rows.append({item.key or "/".join(item.nested_key): item.value_json for item in record.history.item})
    return rows
