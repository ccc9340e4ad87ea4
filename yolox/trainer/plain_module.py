"""``Trainer.compile``: a LightningModule around a plain module, a loss and an optimizer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
from torch import Tensor, nn
from torch.optim import Optimizer

from yolox.errors import UsageError


def compile_module(
    model: nn.Module,
    loss: Callable[..., Tensor] | None = None,
    optimizer: Optimizer | None = None,
    scheduler: Any = None,
    metrics: Sequence[Callable[..., Any]] | None = None,
) -> pl.LightningModule:
    """Return a module that Lightning can train; a LightningModule is returned as it is.

    Raises:
        UsageError: When ``model`` is no module, or a LightningModule comes with a loss or an optimizer.
    """
    if isinstance(model, pl.LightningModule):
        given = [name for name, value in (("loss", loss), ("optimizer", optimizer)) if value is not None]
        if given:
            raise UsageError(f"Trainer.compile got a LightningModule and {' and '.join(given)}; it has its own.")
        return model
    if not isinstance(model, nn.Module):
        raise UsageError(f"Trainer.compile got {type(model).__name__}; expected a torch.nn.Module.")
    if optimizer is not None and not isinstance(optimizer, Optimizer):
        raise UsageError(f"Trainer.compile got the optimizer {optimizer!r}; expected a torch.optim.Optimizer object.")
    if scheduler is not None and optimizer is None:
        raise UsageError("Trainer.compile got a scheduler without an optimizer; expected both.")
    return PlainModule(model, loss, optimizer, scheduler, list(metrics or ()))


class PlainModule(pl.LightningModule):
    """Trains a plain module: the last item of a batch is the target, those before it are the module's arguments.

    Args:
        model: The module.
        loss: Maps output and target to a scalar.
        optimizer: Over the module's parameters; None for a module that is only evaluated.
        scheduler: A scheduler, or Lightning's dictionary around one.
        metrics: Each maps output and target to a number.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., Tensor] | None,
        optimizer: Optimizer | None,
        scheduler: Any,
        metrics: Sequence[Callable[..., Any]],
    ) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.metrics = list(metrics)
        self.stateful_metrics = nn.ModuleList(metric for metric in metrics if isinstance(metric, nn.Module))
        parameters = inspect.signature(model.forward).parameters.values()
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        self._num_inputs = sum(p.kind in kinds for p in parameters)

    def forward(self, *batch: Any) -> Any:
        """Call the module with as many items of the batch as it takes."""
        return self.model(*batch[: self._num_inputs])

    def setup(self, stage: str) -> None:
        """Refuse to train without a loss or an optimizer.

        Raises:
            UsageError: When one is missing.
        """
        if stage != "fit":
            return
        missing = [name for name in ("loss", "optimizer") if getattr(self, name) is None]
        if missing:
            raise UsageError(f"this module was compiled without {' and '.join(missing)}; give it to Trainer.compile.")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of a batch and log it as ``train/loss``."""
        assert self.loss is not None, "setup has seen to it"
        loss = self.loss(self(*batch), batch[-1])
        self.log("train/loss", loss, on_step=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log ``val/loss`` and the metrics."""
        output = self(*batch)
        if self.loss is not None:
            self.log("val/loss", self.loss(output, batch[-1]), prog_bar=True, sync_dist=True)
        self._log_metrics("val", output, batch[-1])

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Log the metrics."""
        self._log_metrics("test", self(*batch), batch[-1])

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        """Return the module's output."""
        return self(*batch) if isinstance(batch, (list, tuple)) else self(batch)

    def configure_optimizers(self) -> Any:
        """Return what `Trainer.compile` was given."""
        if self.scheduler is None:
            return self.optimizer
        return {"optimizer": self.optimizer, "lr_scheduler": self.scheduler}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights of this module, or of the plain module."""
        own = any(key.startswith("model.") for key in state_dict) or not state_dict
        target = super().load_state_dict if own else self.model.load_state_dict
        return target(state_dict, strict=strict, assign=assign)

    def _log_metrics(self, stage: str, output: Any, target: Any) -> None:
        for number, metric in enumerate(self.metrics):
            name = getattr(metric, "__name__", type(metric).__name__)
            self.log(f"{stage}/{name}_{number}", metric(output, target), prog_bar=True, sync_dist=True)
