"""The trainer's use of the training kernels: the module is accelerated for the time of a fit."""

from __future__ import annotations

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from yolox.kernels.training.acceleration import accelerate, restore


class TrainingKernels(Callback):
    """Has the layers of the module computed by the training kernels during a fit; afterwards it is as it was."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Accelerate."""
        accelerate(pl_module)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Restore."""
        restore(pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Restore."""
        restore(pl_module)
