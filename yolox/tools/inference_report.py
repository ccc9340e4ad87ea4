"""How the inference table gets to people: live progress, a plot, the facts of the machine."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import Any

from yolox.inference.results import MethodResult, OptimizationReport
from yolox.inference.search import Listener

__all__ = ["LiveProgress", "draw_plot", "machine_facts"]

WIDTH = 110


class LiveProgress:
    """One line for each finished method, and on a terminal one that says what goes on now.

    Args:
        metric: Name of the metric to show in the lines.
    """

    def __init__(self, metric: str) -> None:
        self._metric = metric
        self._live = sys.stderr.isatty()
        self.listener = Listener(self._on_progress, self._on_result)

    def close(self) -> None:
        """Clear the live line."""
        if self._live:
            print("\r" + " " * WIDTH + "\r", end="", file=sys.stderr, flush=True)

    def _on_progress(self, method: str, message: str) -> None:
        if self._live:
            print("\r" + f"{method}: {message}"[:WIDTH].ljust(WIDTH), end="", file=sys.stderr, flush=True)

    def _on_result(self, result: MethodResult) -> None:
        self.close()
        parts = [f"{result.name:28} {result.status.value:16}"]
        if result.latency is not None:
            parts.append(f"{result.latency.median_ms:9.1f} ms")
        if self._metric in result.metrics:
            parts.append(f"{self._metric} {result.metrics[self._metric]:.4f}")
        if result.reason:
            parts.append(result.reason)
        print("  ".join(parts), file=sys.stderr, flush=True)


def draw_plot(report: OptimizationReport, best: MethodResult, path: Path) -> None:
    """Draw latency (logarithmic) against the decisive metric, one point for each measured row.

    Raises:
        YoloxError: When the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from yolox.files import atomic_path

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    name = report.metric_names[0]
    rows = sorted((row for row in report if row.latency), key=lambda row: row.latency.median_ms if row.latency else 0)
    for number, row in enumerate(rows):
        assert row.latency is not None
        value = row.metrics.get(name, 0.0)
        colour = "tab:red" if row is best else "tab:grey" if row.name == "original" else "tab:blue"
        axes.plot(row.latency.median_ms, value, "o", color=colour)
        offset = (5, 6) if number % 2 == 0 else (5, -12)  # neighbours would write over each other
        axes.annotate(row.name, (row.latency.median_ms, value), xytext=offset, textcoords="offset points", fontsize=8)
    axes.set_xscale("log")
    axes.set_xlabel(f"latency of a batch of {rows[0].latency.batch_size if rows and rows[0].latency else 0}, ms")
    axes.set_ylabel(name if any(name in row.metrics for row in rows) else f"{name} (not measured)")
    axes.grid(alpha=0.3, which="both")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=130)


def machine_facts() -> dict[str, Any]:
    """Return what the numbers depend on."""
    import torch

    from yolox.cpu.machine import read_machine

    return {
        **read_machine().as_dict(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
