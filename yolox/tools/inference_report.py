"""How the inference table gets to people: live progress, a plot, the facts of the machine."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from yolox.inference.search.results import MethodResult, OptimizationReport
from yolox.inference.search.run import Listener

if TYPE_CHECKING:
    from matplotlib.transforms import Bbox

WIDTH = 110
_LINE_FROM = 13
"""Names that are fewer points away from their dot need no line to it."""
SMALLEST_SPAN = 0.1
"""The least range of the plot's axis of AP: a drop of 0.01 is then a tenth of its height."""


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
    from matplotlib.ticker import LogLocator, NullFormatter

    from yolox.files import atomic_path

    figure = Figure(figsize=(10, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    name = report.metric_names[0]
    rows = sorted((row for row in report if row.latency), key=lambda row: row.latency.median_ms if row.latency else 0)
    points = {row.name: (row.latency.median_ms, row.metrics.get(name, 0.0)) for row in rows if row.latency is not None}
    margins = {row.name: report.drop_margin(row) or 0.0 for row in rows}
    _scale_axis(axes, [y + side * margins[row] for row, (_, y) in points.items() for side in (-1, 1)])
    for row in rows:
        margin = margins[row.name]
        if margin:
            label = f"interval of the {name}'s difference from the original"
            axes.errorbar(*points[row.name], yerr=margin, color="0.75", linewidth=0.8, zorder=1, label=label)
        colour = "tab:red" if row is best else "tab:grey" if row.name == "original" else "tab:blue"
        axes.plot(*points[row.name], "o", color=colour, zorder=4, label="kept" if row is best else None)
    told = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if told:
        figure.legend(told.values(), told, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    axes.set_xscale("log")
    axes.margins(x=0.08)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    batch = rows[0].latency.batch_size if rows and rows[0].latency else 0
    axes.set_xlabel(f"latency of a batch of {batch}, ms" if batch != 1 else "latency of one image, ms")
    axes.set_ylabel(name if any(name in row.metrics for row in rows) else f"{name} (not measured)")
    axes.grid(alpha=0.3, which="both")
    _write_names(axes, points)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=130)


def _scale_axis(axes: Any, values: Sequence[float]) -> None:
    """Let the axis of the metric span `SMALLEST_SPAN` at least: rows that differ by noise lie on one level."""
    if values:
        low, high = min(values), max(values)
        span = max(SMALLEST_SPAN, 1.3 * (high - low))
        axes.set_ylim((low + high - span) / 2, (low + high + span) / 2)


def _write_names(axes: Any, points: dict[str, tuple[float, float]]) -> None:
    """Write each name near its point, where it covers no point and no name; the line to it passes no other point."""
    paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # a line behind a name does not cross it
    axes.figure.draw_without_rendering()  # positions are known only now
    frame = axes.get_window_extent()
    dots = axes.transData.transform(list(points.values())) if points else np.zeros((0, 2))
    pixels = axes.figure.dpi / 72
    taken: list[Bbox] = []
    for (name, point), dot in zip(points.items(), dots, strict=True):
        text = axes.annotate(name, point, (0, 0), textcoords="offset points", fontsize=8, va="center", bbox=paper)
        spare = None
        for offset in (offset for distance in range(7, 200, 6) for offset in _around(distance)):
            box = _moved(text, offset)
            inside = frame.containsx(box.x0) and frame.containsx(box.x1) and frame.containsy(box.y0)
            free = inside and frame.containsy(box.y1) and not any(box.overlaps(other) for other in taken)
            if not free or any(box.padded(3).contains(*other) for other in dots):
                continue
            if max(map(abs, offset)) < _LINE_FROM or not _passes(dot, np.multiply(offset, pixels), dots):
                break
            spare = spare or offset
        else:
            if spare is None:
                text.remove()
                continue
            offset, box = spare, _moved(text, spare)
        taken.append(box)
        if max(map(abs, offset)) >= _LINE_FROM:  # a line of its own: the extent of the text shall not include it
            line = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.6, "zorder": 2}
            axes.annotate("", point, offset, textcoords="offset points", arrowprops=line, zorder=2)


def _moved(text: Any, offset: tuple[int, int]) -> Bbox:
    """Put a name so many points beside its point, and return its extent."""
    text.xyann = offset
    text.set_ha("center" if offset[0] == 0 else "left" if offset[0] > 0 else "right")
    box: Bbox = text.get_window_extent()
    return box


def _passes(start: NDArray[Any], way: NDArray[Any], dots: NDArray[Any]) -> bool:
    """Return whether a line comes nearer to another dot than five pixels, or than it begins where that is less."""
    to_dots = dots - start
    share = np.clip(to_dots @ way / (way @ way), 0, 1)
    nearest = np.linalg.norm(to_dots - share[:, None] * way, axis=1)
    return bool((nearest < np.minimum(5, 0.99 * np.linalg.norm(to_dots, axis=1))).any())


def _around(distance: int) -> tuple[tuple[int, int], ...]:
    """Return offsets in points: above, below, right, left, and the corners."""
    d = distance
    return ((0, d), (0, -d), (d, 0), (-d, 0), (d, d), (-d, d), (d, -d), (-d, -d))
