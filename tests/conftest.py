"""One thread for every test and every process that it starts: the tensors are small, and results must not vary.

Without a card, Triton interprets.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import torch

torch.set_num_threads(1)

# before anybody imports Triton's kernels: without a card they are interpreted
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")
