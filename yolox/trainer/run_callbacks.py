"""Callbacks that the trainer itself adds to a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from yolox.trainer.launchers.base import Phase


class HeartbeatCallback(Callback):
    """Tells the supervisor of a worker what it does next.

    Args:
        beat: The worker's own.
    """

    def __init__(self, beat: Callable[[Phase], None]) -> None:
        self.beat = beat

    def on_train_batch_start(self, *_: Any) -> None:
        """Say that a batch is computed."""
        self.beat("step")

    def on_train_batch_end(self, *_: Any) -> None:
        """Say that a batch is fetched."""
        self.beat("data")

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say that the loaders start."""
        self.beat("other")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say that files and reports are written."""
        self.beat("other")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say that evaluation begins."""
        self.beat("other")

    def on_validation_batch_start(self, *_: Any) -> None:
        """Say that a batch is evaluated."""
        self.beat("other")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say that training goes on."""
        self.beat("other")
