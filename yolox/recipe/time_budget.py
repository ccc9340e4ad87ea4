"""A run that ends when its time is used up."""

from __future__ import annotations

import logging
import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

_log = logging.getLogger(__name__)


class TimeBudget(Callback):
    """Ends the run after the optimizer step during which its time was used up; a resumed run has its own time.

    Lightning's ``max_time`` counts the time before a resumption, so that a run that it ended could not go on.

    Args:
        seconds: From the start of training on.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._started = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ask Lightning to stop; never between the batches that make one step, and in all processes together."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        used_up = time.monotonic() - self._started >= self.seconds
        if trainer.strategy.reduce_boolean_decision(used_up, all=False) and not trainer.should_stop:
            trainer.should_stop = True
            if trainer.is_global_zero:
                _log.warning(
                    "the time of %g s is used up: stopped after step %d; go on with --resume",
                    self.seconds,
                    trainer.global_step,
                )
