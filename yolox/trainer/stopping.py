"""SIGTERM: finish the step, write a checkpoint, leave."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from yolox.trainer.lightning_bridge import stop_requested

__all__ = ["STOPPED", "StopInOrder"]

STOPPED = 143
"""Exit code of a run that SIGTERM ended: 128 + 15, as the shell counts."""
_log = logging.getLogger(__name__)


class StopInOrder(Callback):
    """Looks between two batches whether SIGTERM came; then writes a checkpoint and ends the process with 143.

    Between two batches, because at the end of one other callbacks and the module may still have something to do.

    Args:
        path: The checkpoint to write; by default ``interrupted.ckpt`` in the trainer's folder.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Stop before the next batch."""
        if not stop_requested(trainer):
            return
        path = self.path or Path(trainer.default_root_dir) / "interrupted.ckpt"
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            _log.warning("stopped by SIGTERM at step %d; go on from '%s'", trainer.global_step, path)
        raise SystemExit(STOPPED)
