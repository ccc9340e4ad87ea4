"""What a run tells while it goes on: one line an epoch, a trace of its operators."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from yolox.files import atomic_path
from yolox.trainer.tensors import first_dimension

_log = logging.getLogger(__name__)
EpochRecord = dict[str, float]
"""``epoch`` (from 1), ``steps``, ``images``, ``data_seconds`` and ``step_seconds`` (means), ``seconds``,
``images_per_second``."""


class Throughput(Callback):
    """Measures every step and logs one line for each epoch.

    Data time is what a step waits for its batch; step time is the rest of it, callbacks included. The images of an
    epoch are those of all ranks.

    Args:
        names: Logged values to name in the line, in order.
    """

    def __init__(self, names: Sequence[str] = ()) -> None:
        self.names = tuple(names)
        self.epochs: list[EpochRecord] = []
        self._reset(time.perf_counter())

    def _reset(self, now: float) -> None:
        self._epoch_began = self._batch_ended = self._batch_began = now
        self._data = self._step = 0.0
        self._images = self._steps = 0

    @property
    def images_per_second(self) -> float:
        """Images per second of the current epoch so far, over all ranks; 0 before its first step."""
        spent = self._data + self._step
        return self._images / spent if spent > 0 else 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin an epoch."""
        self._reset(time.perf_counter())

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note how long the batch was waited for."""
        self._batch_began = time.perf_counter()
        self._data += self._batch_began - self._batch_ended

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note how long the step took."""
        self._batch_ended = time.perf_counter()
        self._step += self._batch_ended - self._batch_began
        self._images += first_dimension(batch) * trainer.world_size
        self._steps += 1

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the epoch's line."""
        if not self._steps:
            return
        record: EpochRecord = {
            "epoch": trainer.current_epoch + 1.0,
            "steps": float(self._steps),
            "images": float(self._images),
            "data_seconds": self._data / self._steps,
            "step_seconds": self._step / self._steps,
            "seconds": time.perf_counter() - self._epoch_began,
            "images_per_second": self.images_per_second,
        }
        self.epochs = [*(past for past in self.epochs if past["epoch"] < record["epoch"]), record]
        if trainer.is_global_zero:
            metrics = trainer.callback_metrics
            values = {name: float(metrics[name]) for name in self.names if name in metrics}
            _log.info("%s", describe_epoch(record, values))

    def state_dict(self) -> dict[str, Any]:
        """Return the epochs so far."""
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the epochs of a checkpoint."""
        self.epochs = list(state_dict["epochs"])


def describe_epoch(record: EpochRecord, values: Mapping[str, float]) -> str:
    """Return the one line of an epoch."""
    named = "".join(f"{name.rpartition('/')[2]} {value:.4g}, " for name, value in values.items())
    return (
        f"epoch {record['epoch']:.0f}: {named}data {record['data_seconds'] * 1e3:.0f} ms, "
        f"step {record['step_seconds'] * 1e3:.0f} ms, {record['images_per_second']:.1f} images/s, "
        f"{record['seconds'] / 60:.2f} min"
    )


class TraceProfile(Callback):
    """Records a few steps of rank 0 with torch.profiler into a file for chrome://tracing or ui.perfetto.dev.

    Args:
        path: The ``.json`` file to write.
        skip: Steps before the recording.
        steps: Steps to record.
    """

    def __init__(self, path: Path, skip: int = 3, steps: int = 3) -> None:
        self.path = path
        self.skip = skip
        self.steps = steps
        self._seen = 0
        self._profiler: torch.profiler.profile | None = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin the recording when its step has come."""
        if self._seen == self.skip and trainer.is_global_zero:
            self._profiler = torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True, profile_memory=True
            )
            self._profiler.start()
        self._seen += 1

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the file after its last step."""
        if self._seen == self.skip + self.steps:
            self._write()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write what a short run has recorded."""
        self._write()

    def _write(self) -> None:
        if self._profiler is None:
            return
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        with atomic_path(self.path) as temporary:
            profiler.export_chrome_trace(str(temporary))
        _log.info("operators by time:\n%s", profiler.key_averages().table("self_cpu_time_total", row_limit=12))
        _log.info("trace written to '%s'; open it in ui.perfetto.dev", self.path)
