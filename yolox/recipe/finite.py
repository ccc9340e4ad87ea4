"""Numbers that are not finite (NaN, infinite) never reach the weights: the run stops, skips the step or goes back."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torch.optim import Optimizer

from yolox.errors import YoloxError
from yolox.recipe.module import YoloxModule

MAX_SKIPPED_IN_A_ROW = 10
MAX_RESTORED = 3
RESTORED_RATE = 0.5  # the factor of the learning rate each time the run goes back
_log = logging.getLogger(__name__)


class NotFiniteError(YoloxError):
    """A training whose numbers are NaN or infinite."""


class FiniteValues(Callback):
    """Looks at loss, gradients and BatchNorm statistics before every step of the optimizer, in all processes together.

    Where they are not finite, ``on_nonfinite`` says what follows:

    - ``stop``: the run ends with an error.
    - ``skip``: the step is left out: weights, momentum, averages and BatchNorm statistics stay as they were before
      it. After ten such steps in a row the run ends.
    - ``restore``: weights, momentum, averages and BatchNorm statistics are those of the last checkpoint again. The run
      goes on with the images that come next, not with those that led here, and at half the learning rate, so that it
      does not end in the same way. The fourth time it ends.

    A gradient scaler (precision 16) skips steps with infinite gradients by itself; there gradients do not count.

    Args:
        on_nonfinite: What to do.
        checkpoint: The checkpoint that the run writes as it goes. ``restore`` writes a first one where there is none.

    Attributes:
        skipped: Steps left out so far.
        restored: How often the run went back.

    Raises:
        NotFiniteError: In every process, naming step, process, term and images.
    """

    def __init__(self, on_nonfinite: Literal["stop", "skip", "restore"], checkpoint: Path) -> None:
        self.on_nonfinite = on_nonfinite
        self.checkpoint = checkpoint
        self.skipped = self.restored = 0
        self._skipped_in_a_row = 0
        self._bad_loss = False
        self._buffers: list[Tensor] = []
        self._statistics: list[Tensor] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Have something to go back to."""
        if self.on_nonfinite == "restore" and not self._has_checkpoint(trainer):
            trainer.save_checkpoint(self.checkpoint, weights_only=False)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Find the statistics, at the first step of each epoch, and keep what the forward pass is about to change."""
        if batch_idx == 0 or not self._statistics:  # a walk over all modules takes longer than the look at the numbers
            self._statistics = list(pl_module.buffers())
        if self.on_nonfinite == "skip" and not self._buffers:
            self._buffers = [buffer.clone() for buffer in pl_module.buffers()]

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Note a loss that is not finite; all processes act together, before the optimizer's step."""
        self._bad_loss = self._bad_loss or not bool(loss.detach().isfinite().all())

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Look, and act before a step that would make the weights useless."""
        found = self._found(trainer, pl_module, optimizer)
        buffers, self._buffers, self._bad_loss = self._buffers, [], False
        if trainer.strategy.reduce_boolean_decision(found is not None, all=False):
            self._act(trainer, pl_module, _of_all_processes(found, trainer), buffers)
        else:
            self._skipped_in_a_row = 0

    def _found(self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: Optimizer) -> str | None:
        """Return what is not finite in this process, or None."""
        if self._bad_loss:
            return _bad_terms(module, trainer.global_rank)
        gradients = (parameter.grad for group in optimizer.param_groups for parameter in group["params"])
        if trainer.scaler is None and not _finite(gradients):
            return "the gradients, with a finite loss"
        return None if _finite(self._statistics) else "the statistics of BatchNorm, with a finite loss"

    def _act(self, trainer: pl.Trainer, module: pl.LightningModule, found: str, buffers: list[Tensor]) -> None:
        where = f"at step {trainer.global_step + 1} (epoch {trainer.current_epoch + 1}), not finite: {found}"
        if self.on_nonfinite == "stop":
            raise NotFiniteError(f"training stopped {where}. {self._advice(trainer)}")
        if self.on_nonfinite == "skip":
            self.skipped += 1
            self._skipped_in_a_row += 1
            if self._skipped_in_a_row > MAX_SKIPPED_IN_A_ROW:
                raise NotFiniteError(
                    f"training stopped after {MAX_SKIPPED_IN_A_ROW} skipped steps in a row, {where}. "
                    f"{self._advice(trainer)}"
                )
            for buffer, before in zip(module.buffers(), buffers, strict=True):
                buffer.copy_(before)
            told = f"step skipped, {where} ({self.skipped} skipped so far)"
        else:
            self.restored += 1
            if self.restored > MAX_RESTORED:
                raise NotFiniteError(
                    f"training stopped after going back {MAX_RESTORED} times, {where}. {self._advice(trainer)}"
                )
            step = self._go_back_(trainer, module)
            told = (
                f"went back to the weights of step {step} ({self.checkpoint.name}), {where}. The run goes on with the "
                f"next images, at {RESTORED_RATE**self.restored:g} of its learning rate"
            )
        module.zero_grad(set_to_none=True)  # without gradients the optimizer changes nothing
        if trainer.is_global_zero:
            _log.warning("%s", told)

    def _go_back_(self, trainer: pl.Trainer, module: pl.LightningModule) -> int:
        """Give the run the state of its checkpoint, at a lower rate from now on; return the step of that state."""
        content: Any = None
        if trainer.is_global_zero:  # other machines need not have the file
            content = trainer.strategy.checkpoint_io.load_checkpoint(self.checkpoint)
        content = trainer.strategy.broadcast(content)
        module.load_state_dict(content["state_dict"])
        if isinstance(module, YoloxModule) and module.ema is not None:
            module.ema.load_(content["model"], int(content["ema_updates"]))
        for optimizer, state in zip(trainer.optimizers, content["optimizer_states"], strict=True):
            optimizer.load_state_dict(state)
        for config in trainer.lr_scheduler_configs:  # it sets the rate of the next step, and is in every checkpoint
            config.scheduler.base_lrs = [RESTORED_RATE * rate for rate in config.scheduler.base_lrs]
        return int(content["global_step"])

    def _has_checkpoint(self, trainer: pl.Trainer) -> bool:
        return bool(trainer.strategy.broadcast(self.checkpoint.exists()))

    def _advice(self, trainer: pl.Trainer) -> str:
        start = "No checkpoint had been written. Start again with"
        if self._has_checkpoint(trainer):
            start = f"'{self.checkpoint.name}' holds an earlier state. Go on from it (--resume) with"
        skip = ", or have such steps left out: on_nonfinite skip" if self.on_nonfinite == "stop" else ""
        return (
            f"{start} a lower basic_lr_per_img, check the labels of these images, or train with --precision 32{skip}."
        )


def _finite(tensors: Iterable[Tensor | None]) -> bool:
    with torch.no_grad():
        floats = [tensor.flatten() for tensor in tensors if tensor is not None and tensor.is_floating_point()]
    # hundreds of small tensors: side by side they are looked at in a fifth of the time that one after the other takes
    if not any(tensor.numel() for tensor in floats):
        return True
    smallest, largest = torch.aminmax(torch.cat(floats))  # both are NaN if one number is
    return bool(smallest.isfinite() & largest.isfinite())


def _of_all_processes(found: str | None, trainer: pl.Trainer) -> str:
    """Return what the processes found, each thing once."""
    reports = [found] * trainer.world_size
    if trainer.world_size > 1:
        torch.distributed.all_gather_object(reports, found)
    return "; ".join(dict.fromkeys(report for report in reports if report))


def _bad_terms(module: pl.LightningModule, rank: int) -> str:
    """Return which terms of this process's last batch are not finite, and its images."""
    if not isinstance(module, YoloxModule) or module.terms is None or module.image_ids is None:
        return f"the loss of process {rank}"
    names = [name for name, value in module.terms._asdict().items() if not bool(value.isfinite())]
    images = ", ".join(str(int(image)) for image in module.image_ids[:8])
    more = ", ..." if len(module.image_ids) > 8 else ""
    return f"{', '.join(names) or 'the loss'} of process {rank} (images {images}{more})"
