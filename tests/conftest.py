"""One thread for every test and every process that it starts: the tensors are small, and results must not vary."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import torch

torch.set_num_threads(1)
