"""Batch-norm statistics of the converted network: those of the dense one are not its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_nm.conversion.calibration import Calibration, Call, evaluating


def reestimate_batch_norm(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    call: Call | None = None,
    samples: int | None = None,
    seed: int = 0,
) -> int:
    """Estimate running means and variances anew from calibration data (Hubara et al., NeurIPS 2021).

    Only the batch norms are in training mode for it: dropout stays off, unlike in `torch.optim.swa_utils.update_bn`.
    If anything fails, the old statistics are back.

    Args:
        model: converted; one without batch norm is left alone.
        batches: calibration data; their mean statistics are taken, each batch counting the same.
        call: gives the model a batch. None: a LightningModule by ``validation_step`` or ``predict_step``, others by
            ``model(batch)``, ``model(batch[0])`` or ``model(**batch)``.
        samples: how many to use. None: all.
        seed: of whatever is random in the loader or the model.

    Returns:
        Number of batch norms whose statistics are new.

    Raises:
        ValueError: no batches, or (from torch) a batch of a single sample.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None]
    if not norms:
        return 0
    calibration = Calibration(model, batches, call, samples, seed)
    old = [(norm.momentum, {name: buffer.clone() for name, buffer in norm.named_buffers()}) for norm in norms]
    met: list[_BatchNorm] = []
    try:
        with evaluating(model):
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # a plain mean over the batches
                norm.train()
            calibration.run()
        met = [norm for norm in norms if norm.num_batches_tracked]
    finally:
        for norm, (momentum, statistics) in zip(norms, old):
            norm.momentum = momentum
            if norm not in met:
                for name, buffer in norm.named_buffers():
                    buffer.copy_(statistics[name])
    return len(met)
