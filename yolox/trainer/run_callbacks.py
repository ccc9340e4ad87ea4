"""Callbacks that the trainer itself adds to every run: kernels, counters of a checkpoint, a stop in good order."""

from __future__ import annotations

import logging
import signal
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from yolox.kernels.training.acceleration import accelerate, restore
from yolox.trainer.lightning_bridge import set_counters_, stop_requested

_log = logging.getLogger(__name__)


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


class ResumeCounters(Callback):
    """Has a run go on from the ``epoch`` and ``global_step`` that the module left in the loaded checkpoint.

    Lightning calls the `on_load_checkpoint` of the module before those of the callbacks.
    """

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Move the loops where they stand elsewhere."""
        if pl_module.automatic_optimization and "optimizer_states" in checkpoint:
            set_counters_(checkpoint)


class GracefulStop(Callback):
    """Looks between two batches whether SIGTERM or Ctrl-C came; then writes a checkpoint and ends the process.

    The exit code is 143 or 130, as the shell counts.

    Between two batches, because at the end of one other callbacks and the module may still have something to do.

    Args:
        path: The checkpoint to write; by default ``interrupted.ckpt`` in the trainer's folder.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Stop before the next batch."""
        signum = stop_requested(trainer)
        if not signum:
            return
        path = self.path or Path(trainer.default_root_dir) / "interrupted.ckpt"
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            _log.warning(
                "stopped by %s at step %d; go on from '%s'", signal.Signals(signum).name, trainer.global_step, path
            )
        raise SystemExit(128 + signum)
