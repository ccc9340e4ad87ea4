"""SIGTERM and Ctrl-C: finish the step, write a checkpoint, leave."""

from __future__ import annotations

import logging
import signal
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from yolox.trainer.lightning_bridge import ignore_more_stop_signals, stop_requested

_log = logging.getLogger(__name__)


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
        ignore_more_stop_signals(trainer)
        raise SystemExit(128 + signum)
