"""Kernels on as many threads as torch uses."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from pathlib import Path
from typing import Any

import torch


def run(kernel: Callable[[int], None], units: int, arguments: Sequence[int]) -> None:
    """Do all units of a `lightning_nm.kernels.cpu.emit.Kernel`, on ``torch.get_num_threads()`` threads at most."""
    block = (ctypes.c_int64 * (2 + len(arguments)))(0, units, *arguments)
    threads = min(torch.get_num_threads(), units)
    if threads < 2:
        kernel(ctypes.addressof(block))
    elif (team := _openmp()) is not None:
        team(kernel, ctypes.addressof(block), threads, 0)
    else:
        wait([_pool(threads).submit(kernel, ctypes.addressof(block)) for _ in range(threads)])


@cache
def _openmp() -> Any | None:
    """``GOMP_parallel`` of the very library that torch runs on: one pool of threads for both, not two that fight."""
    beside = sorted(Path(torch.__file__).parent.glob("lib/libgomp*.so*"))
    for library in (*map(str, beside), None):
        try:
            team = ctypes.CDLL(library).GOMP_parallel
        except (OSError, AttributeError, TypeError):
            continue
        team.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        team.restype = None
        return team
    return None


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)
