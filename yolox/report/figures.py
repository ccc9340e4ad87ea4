"""The figures of a report, drawn by matplotlib without a display."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from yolox.data.coco_dataset import CocoDataset
from yolox.data.report import class_counts
from yolox.evaluation.coco_metric import CocoResult
from yolox.evaluation.matching import ScoreCurves
from yolox.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


EpochRow = Mapping[str, float]
_NUM_LINES = 10  # classes whose lines can be told apart
_NUM_CELLS = 25  # classes whose numbers fit into a matrix
_MAX_NAME = 22
_AP_SCALES = (0.1, 0.25, 0.5, 1.0)
_DPI = 110
_NUM_BARS = 30
_COCO_BORDERS = (32, 96)
"""Sides in pixels between what COCO calls small, medium and large."""


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of so many inches that no window shows."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def png_of(figure: Figure) -> bytes:
    """Return a figure as a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the tables beside hold the name
        figure.savefig(content, format="png", dpi=_DPI)
    return content.getvalue()


def write_png(figure: Figure, path: Path) -> None:
    """Write a figure to a PNG file."""
    content = png_of(figure)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def plain(name: str) -> str:
    """Return a class name as matplotlib shows it, whatever it holds: cut, on one line, ``$`` being no formula."""
    shown = " ".join(name.split())
    shown = shown if len(shown) <= _MAX_NAME else shown[: _MAX_NAME - 1] + "…"
    return shown.replace("$", r"\$")


def curves_figure(rows: Sequence[EpochRow]) -> Figure:
    """Return loss terms, learning rate and AP over the epochs of a run, the rows of its ``results.csv``."""
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(13, 4)
    losses, rate, accuracy = figure.subplots(1, 3)
    groups = ((losses, "train/", "loss terms, mean of the epoch"), (accuracy, "val/", "COCO AP"), (rate, "lr", "rate"))
    for axes, prefix, title in groups:
        for key in dict.fromkeys(key for row in rows for key in row if key.startswith(prefix)):
            points = [(row["epoch"], row[key]) for row in rows if key in row and math.isfinite(row[key])]
            if points:
                label = key.removeprefix(prefix)
                axes.plot(*zip(*points, strict=True), label=label or None, marker="." if len(points) < 40 else None)
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    rate.set(title="learning rate", ylabel="at the end of the epoch")
    rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    losses.set_ylim(bottom=0)
    highest = max((value for row in rows for key, value in row.items() if key.startswith("val/")), default=1.0)
    accuracy.set_ylim(0, next((top for top in _AP_SCALES if top > highest), 1.0))
    return figure


def precision_recall_figure(coco: CocoResult) -> Figure:
    """Return the precision-recall curves at IoU 0.5, whose areas are the AP50 of the classes and their mean."""
    figure = new_figure(8, 5)
    axes = figure.subplots()
    recall = np.linspace(0, 1, coco.precision50.shape[1])
    order = [index for index, row in enumerate(coco.per_class) if not math.isnan(row.ap50)]
    _class_lines(
        axes,
        recall,
        [coco.precision50[index] for index in order],
        [f"{coco.per_class[index].ap50:.3f}  {plain(coco.per_class[index].name)}" for index in order],
    )
    mean = np.mean(coco.precision50[order], axis=0)
    axes.plot(recall, mean, color="black", linewidth=2.5, label=f"{coco.metrics['AP50']:.3f}  all classes")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision", title="precision and recall at IoU 0.5")
    axes.grid(alpha=0.3)
    axes.legend(title="AP50", loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _class_lines(axes: Axes, x: NDArray[Any], lines: Sequence[NDArray[Any]], labels: Sequence[str]) -> None:
    """Draw a line for each class; where they are many, grey ones without names."""
    named = len(lines) <= _NUM_LINES
    for number, (line, label) in enumerate(zip(lines, labels, strict=True)):
        style = {"color": f"C{number}", "label": label} if named else {"color": "0.6", "alpha": 0.5}
        axes.plot(x, line, linewidth=1.2 if named else 0.7, **style)
    if not named:
        axes.plot([], [], color="0.6", linewidth=0.7, label=f"each of {len(lines)} classes")


def confidence_figure(curves: ScoreCurves, names: Sequence[str]) -> Figure:
    """Return precision, recall and F1 against the confidence, the mean of the classes and F1 of each."""
    figure = new_figure(13, 4.5)
    means, each = figure.subplots(1, 2)
    x = curves.thresholds
    for line, label in (
        (curves.mean_precision, "precision"),
        (curves.mean_recall, "recall"),
        (curves.mean_f1, "F1"),
    ):
        means.plot(x, line, label=label, linewidth=1.8)
    means.set(title="mean of the classes")
    order = [index for index in range(len(names)) if not np.isnan(curves.f1[index]).all()]
    _class_lines(each, x, [curves.f1[index] for index in order], [plain(names[index]) for index in order])
    each.plot(x, curves.mean_f1, color="black", linewidth=2.5, label="all classes")
    each.set(title="F1 of each class")
    for axes in (means, each):
        if curves.best is not None:
            best, highest = float(x[curves.best]), float(curves.mean_f1[curves.best])
            label = f"best F1 {highest:.3f} at {best:.3f}"
            axes.axvline(best, color="0.3", linestyle="--", linewidth=1, label=label if axes is means else None)
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="lowest confidence that counts")
        axes.grid(alpha=0.3)
    means.legend()
    each.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def few_classes(matrix: NDArray[np.int64], names: Sequence[str]) -> tuple[NDArray[np.int64], list[str]]:
    """Return a confusion matrix that can be read: the classes with the most objects, and all others as one.

    Args:
        matrix: ``[K + 1, K + 1]``, see `confusion_matrix`.
        names: K class names.

    Returns:
        The matrix and the names of its rows, the last of which is the background.
    """
    num_classes = len(names)
    if num_classes <= _NUM_CELLS:
        return matrix, [*names, "background"]
    most = np.sort(np.argsort(-matrix[:num_classes].sum(axis=1), kind="stable")[: _NUM_CELLS - 1])
    group = np.full(num_classes + 1, len(most))
    group[most] = np.arange(len(most))
    group[num_classes] = len(most) + 1
    small = np.zeros((len(most) + 2, len(most) + 2), np.int64)
    np.add.at(small, (group[:, None], group[None]), matrix)
    return small, [*(names[index] for index in most), f"{num_classes - len(most)} others", "background"]


def confusion_figure(matrix: NDArray[np.int64], names: Sequence[str]) -> Figure:
    """Return a confusion matrix: counts, on a colour that is the share of the row; arguments as of `few_classes`."""
    side = max(4.5, 1.8 + 0.38 * len(names))
    figure = new_figure(side + 1.2, side)
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ticks = [plain(name) for name in names]
    axes.set_xticks(range(len(names)), ticks, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), ticks)
    for (row, column), count in np.ndenumerate(matrix):
        if count:
            color = "white" if shares[row, column] > 0.6 else "black"
            axes.text(column, row, f"{count}", ha="center", va="center", fontsize=8, color=color)
    axes.set(xlabel="predicted", ylabel="labelled")
    figure.colorbar(image, label="share of the row", shrink=0.6)
    return figure


def relative_boxes(data: CocoDataset) -> NDArray[np.float64]:
    """Return ``[M, 4]``: centre x, centre y, width and height of each object as shares of its image, without crowds."""
    owners = data.owners()[~data.crowd]
    boxes = data.boxes_xywh[~data.crowd]
    sizes = data.sizes[owners][:, ::-1].astype(np.float64)
    return np.concatenate([(boxes[:, :2] + boxes[:, 2:] / 2) / sizes, boxes[:, 2:] / sizes], axis=1)


def labels_figure(splits: Mapping[str, CocoDataset]) -> Figure:
    """Return the label statistics of the splits: objects of each class, box sides in pixels, sizes, positions."""
    figure = new_figure(13, 8)
    grid = figure.add_gridspec(2, 3)
    _draw_counts(figure.add_subplot(grid[0, :]), splits)
    _draw_sides(figure.add_subplot(grid[1, 0]), splits)
    boxes = np.concatenate([relative_boxes(data) for data in splits.values()])
    shares = [(0, 1), (0, 1)]
    sizes, places = figure.add_subplot(grid[1, 1]), figure.add_subplot(grid[1, 2])
    for axes, columns in ((sizes, boxes[:, 2:]), (places, boxes[:, :2])):
        counts, _, _ = np.histogram2d(columns[:, 0], columns[:, 1], bins=50, range=shares)
        axes.imshow(np.sqrt(counts.T), extent=(0, 1, 0, 1), origin="lower", cmap="Blues", aspect="equal")
    sizes.set(title="box sizes", xlabel="width, share of the image", ylabel="height, share of the image")
    places.set(title="box centres", xlabel="share of the width", ylabel="share of the height")
    places.invert_yaxis()
    return figure


def _draw_counts(axes: Axes, splits: Mapping[str, CocoDataset]) -> None:
    columns = {name: class_counts(data) for name, data in splits.items()}
    total = sum(columns.values(), np.zeros(1, np.int64))
    order = np.argsort(-total, kind="stable")[:_NUM_BARS]
    names = next(iter(splits.values())).class_names
    width = 0.8 / len(columns)
    for number, (name, counts) in enumerate(columns.items()):
        axes.bar(np.arange(len(order)) + (number - (len(columns) - 1) / 2) * width, counts[order], width, label=name)
    axes.set_xticks(range(len(order)), [plain(names[index]) for index in order], rotation=45, ha="right")
    few = f"the {len(order)} most frequent of {len(names)} classes" if len(names) > len(order) else "objects per class"
    axes.set(title=few, ylabel="objects")
    axes.set_xlim(-0.7, max(len(order), 4) - 0.3)
    if total.max(initial=0) > 50 * max(1, np.median(total[order])):
        axes.set_yscale("symlog", linthresh=1)
    axes.grid(alpha=0.3, axis="y")
    axes.legend()


def _draw_sides(axes: Axes, splits: Mapping[str, CocoDataset]) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    sides = {name: np.sqrt(data.areas[~data.crowd].clip(1)) for name, data in splits.items()}
    everything = np.concatenate(list(sides.values()))
    bins = np.geomspace(min(16.0, everything.min(initial=16.0)), max(128.0, everything.max(initial=128.0)), 40).tolist()
    for name, own in sides.items():
        weights = np.full(len(own), 1 / max(1, len(own)))
        axes.hist(own, bins, weights=weights, histtype="step", linewidth=1.6, label=name)
    for border in _COCO_BORDERS:
        axes.axvline(border, color="0.5", linestyle=":", linewidth=1)
    axes.set(title="object sizes; small | medium | large", xscale="log", ylabel="share of the objects")
    axes.set_xlabel("square root of the area, pixels of the file")
    axes.xaxis.set_major_locator(LogLocator(base=2, numticks=9))  # 16, 32, 64: those of the default overlap
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.legend(loc="upper left")
