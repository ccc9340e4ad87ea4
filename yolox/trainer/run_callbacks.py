"""Callbacks that the trainer itself adds to a run: kernels, scaled rates, counters, a stop in good order."""

from __future__ import annotations

import logging
import signal
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from yolox.errors import UsageError
from yolox.kernels.training.acceleration import accelerate, restore
from yolox.kernels.training.step_memory import BLOCKS
from yolox.trainer.lightning_bridge import ignore_more_stop_signals, set_counters_, stop_requested

_log = logging.getLogger(__name__)


class ScaledLearningRate(Callback):
    """Multiplies every learning rate by the number of processes when training starts, and says so.

    Without a scheduler of the module's own, the rate then rises from its old value over the warm-up.

    Args:
        warmup_epochs: Length of the warm-up; None for a tenth of the run.
    """

    def __init__(self, warmup_epochs: int | None = None) -> None:
        self.warmup_epochs = warmup_epochs
        self.factor = 1
        self._targets: list[list[float]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Scale once; a run that goes on from a checkpoint has its scaled rates already.

        Raises:
            UsageError: When a scheduler sets rates without looking at ``base_lrs``: scaling would be lost.
        """
        world, done = trainer.world_size, self.factor
        self.factor = world
        for config in trainer.lr_scheduler_configs if world > 1 else ():
            if not hasattr(config.scheduler, "base_lrs"):
                name = type(config.scheduler).__name__
                raise UsageError(f"auto_lr cannot scale the rates of {name}; set them yourself and leave auto_lr out.")
            config.scheduler.base_lrs = [rate * world / done for rate in config.scheduler.base_lrs]
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * world / done
        own_schedule = bool(trainer.lr_scheduler_configs)
        rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in trainer.optimizers]
        self._targets = [] if own_schedule or world == 1 else self._targets or rates
        if trainer.is_global_zero and world > done:
            after = (
                "its scheduler goes on from there" if own_schedule else f"warm-up {self._warmup_steps(trainer)} steps"
            )
            _log.warning("auto_lr: learning rates multiplied by %d processes (%s); %s", world, rates, after)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Raise the rate from the unscaled rate to the scaled one."""
        steps = self._warmup_steps(trainer)
        if not self._targets or trainer.global_step > steps:
            return
        start = 1.0 / self.factor
        share = start + (1.0 - start) * min(1.0, trainer.global_step / max(1, steps))
        for optimizer, targets in zip(trainer.optimizers, self._targets, strict=True):
            for group, target in zip(optimizer.param_groups, targets, strict=True):
                group["lr"] = target * share

    def _warmup_steps(self, trainer: pl.Trainer) -> int:
        steps = int(trainer.num_training_batches)
        if self.warmup_epochs is not None:
            return self.warmup_epochs * steps
        epochs = max(0, trainer.max_epochs or 0)
        return epochs // 10 * steps or steps * epochs // 10

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run must not do again."""
        return {"factor": self.factor, "targets": self._targets}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.factor, self._targets = state_dict["factor"], state_dict["targets"]


class TrainingKernels(Callback):
    """Has the layers of the module computed by the training kernels during a fit; afterwards it is as it was."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Accelerate."""
        accelerate(pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the memory of steps to the evaluation."""
        BLOCKS.release()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Restore."""
        restore(pl_module)
        BLOCKS.release()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Restore."""
        restore(pl_module)
        BLOCKS.release()


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
        ignore_more_stop_signals(trainer)
        raise SystemExit(128 + signum)
