"""Going on from a checkpoint whose counters the module has changed."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from yolox.trainer.lightning_bridge import set_counters_


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
