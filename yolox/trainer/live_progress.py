"""The live view of a run: on a terminal one line with a bar that stays below everything else that is printed."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar

from yolox.trainer.tensors import first_dimension

if TYPE_CHECKING:
    from rich.progress import Progress

_REFRESH_SECONDS = 0.2
_BAR_WIDTH = 24


class LiveProgress(ProgressBar):
    """Shows epoch, a bar over its steps, the time left, images per second and the logged values.

    On a terminal that is one line, drawn again after a step but without a thread; what others print appears above it.
    Elsewhere (files, pipes) there is nothing to draw over: `Throughput` logs a line for each epoch, and this callback
    prints one every ``interval`` steps where that is asked for.

    Args:
        interval: Steps between two lines where there is no terminal; None for no such lines.
        names: Logged values to show, in order; empty: those logged with ``prog_bar=True``.
        stream: Where to write; standard output by default.
    """

    def __init__(self, interval: int | None = None, names: Sequence[str] = (), stream: TextIO | None = None) -> None:
        super().__init__()
        self.interval = interval
        self.names = tuple(names)
        self.stream = stream
        self._enabled = True
        self._began = 0.0
        self._first_step = 0
        self._drawn_at = 0.0
        self._bar: Progress | None = None

    def enable(self) -> None:
        """Show the progress."""
        self._enabled = True

    def disable(self) -> None:
        """Show nothing."""
        self._enabled = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Write a line of its own."""
        text = " ".join(str(item) for item in args)
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            self._stream.write(text + "\n")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock, and the bar where there is a terminal."""
        super().on_train_start(trainer, pl_module)
        self._began, self._first_step = time.perf_counter(), trainer.global_step
        if self._enabled and trainer.is_global_zero:
            self._bar = _build_bar(self._stream)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show where the run is."""
        if not self._enabled or not trainer.is_global_zero:
            return
        done, total = batch_idx + 1, trainer.num_training_batches
        if self._bar is not None:
            now = time.perf_counter()
            if done == total or now - self._drawn_at > _REFRESH_SECONDS:
                self._drawn_at = now
                self._draw(self._bar, trainer, batch, done)
        elif self.interval is not None and (done == total or done % self.interval == 0):
            parts = [_epoch(trainer), f"step {done}/{total}", *self._values(trainer), *self._pace(trainer, batch)]
            self._stream.write("  ".join(parts) + "\n")
            self._stream.flush()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the line as it is."""
        self._finish()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the line, and the terminal to the error."""
        self._finish()

    @property
    def _stream(self) -> TextIO:
        return sys.stdout if self.stream is None else self.stream

    def _finish(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _draw(self, bar: Progress, trainer: pl.Trainer, batch: Any, done: int) -> None:
        total = trainer.num_training_batches
        text = "  ".join([f"{done}/{total}", *reversed(self._pace(trainer, batch)), *self._values(trainer)])
        bounded = float(total) if math.isfinite(total) else None
        bar.update(bar.task_ids[0], description=_epoch(trainer), completed=done, total=bounded, text=text)
        bar.refresh()

    def _values(self, trainer: pl.Trainer) -> list[str]:
        shown = trainer.callback_metrics if self.names else trainer.progress_bar_metrics
        return [f"{name.rpartition('/')[2]} {float(shown[name]):.4g}" for name in self.names or shown if name in shown]

    def _pace(self, trainer: pl.Trainer, batch: Any) -> list[str]:
        """Return images a second and the time left, as far as they are known."""
        steps, spent = trainer.global_step - self._first_step, time.perf_counter() - self._began
        if steps <= 0 or spent <= 0:
            return []
        rate, left = steps / spent, _steps_left(trainer)
        images = rate * trainer.accumulate_grad_batches * first_dimension(batch) * trainer.world_size
        return [f"{images:.1f} images/s", *([f"{format_seconds(left / rate)} left"] if left is not None else [])]


def _build_bar(stream: TextIO) -> Progress | None:
    """Return a started bar with one task, or None where ``stream`` is no terminal that can move its cursor."""
    if not stream.isatty():
        return None
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.table import Column

    console = Console(file=stream)
    if not console.is_terminal or console.is_dumb_terminal:
        return None
    cut = Column(no_wrap=True, overflow="ellipsis", ratio=1)  # takes the width that the others leave
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(_BAR_WIDTH),
        TextColumn("{task.fields[text]}", markup=False, table_column=cut),
        console=console,
        auto_refresh=False,
        expand=True,
        redirect_stdout=stream is sys.stdout,
        redirect_stderr=sys.stderr.isatty(),  # what goes to a file stays there
    )
    bar.add_task("", total=None, text="")
    bar.start()
    return bar


def _epoch(trainer: pl.Trainer) -> str:
    epochs = "" if trainer.max_epochs in (None, -1) else f"/{trainer.max_epochs}"
    return f"epoch {trainer.current_epoch + 1}{epochs}"


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
