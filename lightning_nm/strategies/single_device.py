"""``strategy="nm_sparse"``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.strategies import SingleDeviceStrategy

from lightning_nm.sparse.decision import AUTO
from lightning_nm.strategies.sparse_steps import SparseSteps


class NMSparseStrategy(SparseSteps, SingleDeviceStrategy):
    """One device; sparse kernels in validation, test and predict, and in training if asked for.

    Args:
        device: None: the one that the Trainer's ``accelerator`` and ``devices`` name.
        backend, report: see `SparseEvaluation`.
        sparse_training: see `SparseSteps`.
        others: those of Lightning's SingleDeviceStrategy.

    Raises:
        ValueError: no such backend; later, if the Trainer has more than one device.
    """

    strategy_name = "nm_sparse"

    def __init__(
        self,
        device: str | int | torch.device | None = None,
        *,
        backend: str = AUTO,
        report: bool = True,
        sparse_training: bool = False,
        **others: Any,
    ) -> None:
        asked: dict[str, Any] = {"backend": backend, "report": report, "sparse_training": sparse_training}
        super().__init__("cpu" if device is None else device, **asked, **others)
        self._devices = [] if device is None else [self.root_device]

    @property
    def parallel_devices(self) -> Sequence[torch.device]:
        """The device in a list, as Lightning gives and asks for it where a strategy was chosen by name."""
        return self._devices

    @parallel_devices.setter
    def parallel_devices(self, devices: Sequence[torch.device]) -> None:
        if len(devices) > 1:
            raise ValueError(
                f"nm_sparse runs on one device and the Trainer has {len(devices)}; use strategy='nm_sparse_ddp', or "
                "devices=1"
            )
        self._devices = list(devices)
        self._root_device = torch.device(devices[0])
