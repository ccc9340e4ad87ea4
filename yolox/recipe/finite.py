"""A run stops at the step whose loss or gradients are not finite, before they reach the weights or a file."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torch.optim import Optimizer

from yolox.errors import YoloxError
from yolox.recipe.module import YoloxModule

__all__ = ["FiniteValues", "NotFiniteError"]


class NotFiniteError(YoloxError):
    """A training whose numbers are NaN or infinite."""


class FiniteValues(Callback):
    """Stops the run where the loss or the gradients are not finite.

    A gradient scaler (precision 16) skips steps with infinite gradients by itself; there only the loss counts.

    Raises:
        NotFiniteError: In every process, naming step, process, term and images.
    """

    def __init__(self) -> None:
        self._bad_loss = False

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Note a loss that is not finite; all processes stop together, before the optimizer's step."""
        self._bad_loss = self._bad_loss or not bool(loss.detach().isfinite().all())

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Stop before a step that would make the weights useless."""
        bad = self._bad_loss or (trainer.scaler is None and not _finite_gradients(optimizer))
        own, self._bad_loss = self._bad_loss, False
        several = trainer.world_size > 1
        if several:
            bad = bool(trainer.strategy.reduce_boolean_decision(bad, all=False))
        if bad:
            report = _describe(pl_module, own, trainer.global_rank)
            reports: list[str | None] = [report]
            if several:
                reports = [None] * trainer.world_size
                torch.distributed.all_gather_object(reports, report)
            found = "; ".join(text for text in reports if text) or "the gradients, with a finite loss"
            raise NotFiniteError(
                f"training stopped at step {trainer.global_step + 1} (epoch {trainer.current_epoch + 1}), not finite: "
                f"{found}. The checkpoints hold the state before. Lower basic_lr_per_img, check the labels of these "
                "images, or train with --precision 32."
            )


def _finite_gradients(optimizer: Optimizer) -> bool:
    gradients = [
        parameter.grad
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    ]
    return not gradients or bool(torch.nn.utils.get_total_norm(gradients, float("inf")).isfinite())


def _describe(module: pl.LightningModule, bad_loss: bool, rank: int) -> str | None:
    """Return which terms of this process's batch are not finite, and its images; None where all are finite."""
    if not bad_loss or not isinstance(module, YoloxModule) or module.terms is None or module.image_ids is None:
        return None
    names = [name for name, value in module.terms._asdict().items() if not bool(value.isfinite())]
    images = ", ".join(str(int(image)) for image in module.image_ids[:8]) + (
        ", ..." if len(module.image_ids) > 8 else ""
    )
    return f"{', '.join(names)} of process {rank} (images {images})"
