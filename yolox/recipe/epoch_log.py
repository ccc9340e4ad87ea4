"""One row for each epoch in ``results.csv``, and the curves that follow from it."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from statistics import fmean

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from yolox.files import write_text
from yolox.recipe.callbacks import Evaluation
from yolox.report.figures import curves_figure, write_png

_LOSSES = ("total", "iou", "objectness", "classes", "l1")


class EpochLog(Callback):
    """Keeps the mean losses, rate and AP of every epoch; a resumed run goes on with the rows it had.

    Args:
        folder: Where ``results.csv`` and ``curves.png`` are written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[dict[str, float]] = []
        self._values: dict[str, list[float]] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin with the evaluation of the start weights, where there was one."""
        if not self.rows:
            self.rows = [past for past in self._evaluations(trainer) if past["epoch"] == 0]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Add the step's terms to the means of the epoch; a term that is not finite is of a step that was left out."""
        metrics = trainer.callback_metrics  # collected anew each time
        for name in _LOSSES:
            value = float(metrics.get(f"train/{name}", math.nan))
            if math.isfinite(value):
                self._values.setdefault(name, []).append(value)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the epoch's row."""
        epoch = float(trainer.current_epoch + 1)
        row = {"epoch": epoch, **{f"train/{name}": fmean(values) for name, values in self._values.items()}}
        row["lr"] = float(trainer.callback_metrics.get("lr", float("nan")))
        row.update(next((past for past in self._evaluations(trainer) if past["epoch"] == epoch), {}))
        self.rows = [past for past in self.rows if past["epoch"] < epoch] + [row]
        self._values = {}
        if trainer.is_global_zero:
            write_text(self.folder / "results.csv", _as_csv(self.rows))

    @staticmethod
    def _evaluations(trainer: pl.Trainer) -> list[dict[str, float]]:
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        return [row for callback in callbacks if isinstance(callback, Evaluation) for row in callback.history]

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the curves."""
        if trainer.is_global_zero and self.rows:
            write_png(curves_figure(self.rows), self.folder / "curves.png")

    def state_dict(self) -> dict[str, object]:
        """Return the rows so far."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Go on with the rows of a checkpoint."""
        self.rows = list(state_dict["rows"])  # type: ignore[call-overload]


def _as_csv(rows: list[dict[str, float]]) -> str:
    header = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: f"{value:.9g}" for key, value in row.items()} for row in rows)
    return text.getvalue()
