"""What a run tells while it goes on: progress, one line an epoch, a trace of its operators."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ProgressBar

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
    """

    def __init__(self) -> None:
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
            _log.info("%s", describe_epoch(record))

    def state_dict(self) -> dict[str, Any]:
        """Return the epochs so far."""
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the epochs of a checkpoint."""
        self.epochs = list(state_dict["epochs"])


def describe_epoch(record: EpochRecord) -> str:
    """Return the one line of an epoch."""
    return (
        f"epoch {record['epoch']:.0f}: data {record['data_seconds'] * 1e3:.0f} ms, "
        f"step {record['step_seconds'] * 1e3:.0f} ms, {record['images_per_second']:.1f} images/s, "
        f"{record['seconds'] / 60:.2f} min"
    )


class LiveProgress(ProgressBar):
    """Shows epoch, step, the logged values, images per second and the time left.

    On a terminal it is one line that is written over; elsewhere (files, pipes) a plain line every ``interval`` steps.

    Args:
        interval: Steps between two plain lines.
        names: Logged values to show, in order; empty: those logged with ``prog_bar=True``.
        stream: Where to write; standard output by default.
    """

    def __init__(self, interval: int = 20, names: Sequence[str] = (), stream: TextIO | None = None) -> None:
        super().__init__()
        self.interval = interval
        self.names = tuple(names)
        self.stream = stream
        self._enabled = True
        self._began = 0.0
        self._first_step = 0
        self._width = 0
        self._written_at = 0.0

    def enable(self) -> None:
        """Show the progress."""
        self._enabled = True

    def disable(self) -> None:
        """Show nothing."""
        self._enabled = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Write a line of its own."""
        self._finish_line()
        self._stream.write(" ".join(str(item) for item in args) + "\n")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        super().on_train_start(trainer, pl_module)
        self._began, self._first_step = time.perf_counter(), trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show where the run is."""
        total = trainer.num_training_batches
        last = batch_idx + 1 == total
        if not self._enabled or not trainer.is_global_zero:
            return
        if self._stream.isatty():
            now = time.perf_counter()
            if last or now - self._written_at > 0.2:
                self._written_at = now
                text = self._text(trainer, batch, batch_idx)
                self._stream.write("\r" + text.ljust(self._width))
                self._width = len(text)
                self._stream.flush()
        elif last or (batch_idx + 1) % self.interval == 0:
            self._stream.write(self._text(trainer, batch, batch_idx) + "\n")
            self._stream.flush()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the line of the epoch."""
        self._finish_line()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the line to the error."""
        self._finish_line()

    @property
    def _stream(self) -> TextIO:
        return sys.stdout if self.stream is None else self.stream

    def _finish_line(self) -> None:
        if self._width:
            self._stream.write("\n")
            self._width = 0

    def _text(self, trainer: pl.Trainer, batch: Any, batch_idx: int) -> str:
        steps = trainer.global_step - self._first_step
        spent = time.perf_counter() - self._began
        epochs = "" if trainer.max_epochs in (None, -1) else f"/{trainer.max_epochs}"
        batches = trainer.num_training_batches
        parts = [f"epoch {trainer.current_epoch + 1}{epochs}", f"step {batch_idx + 1}/{batches}"]
        shown = trainer.callback_metrics if self.names else trainer.progress_bar_metrics
        for name in self.names or shown:
            if name in shown:
                parts.append(f"{name.rpartition('/')[2]} {float(shown[name]):.4g}")
        if steps > 0 and spent > 0:
            rate = steps / spent
            parts.append(f"{rate * first_dimension(batch) * trainer.world_size:.1f} images/s")
            left = _steps_left(trainer)
            parts += [f"{format_seconds(left / rate)} left"] if left is not None else []
        return "  ".join(parts)


def _steps_left(trainer: pl.Trainer) -> float | None:
    per_epoch = trainer.num_training_batches / max(1, trainer.accumulate_grad_batches)
    ends = []
    if trainer.max_epochs not in (None, -1) and math.isfinite(per_epoch):
        ends.append(per_epoch * (trainer.max_epochs or 0))
    if trainer.max_steps > 0:
        ends.append(float(trainer.max_steps))
    return max(0.0, min(ends) - trainer.global_step) if ends else None


def format_seconds(seconds: float) -> str:
    """Return a duration as ``1:02:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


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
