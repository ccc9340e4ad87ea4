"""Statistics of the labels: how many objects each class has, how large they are and where they lie."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from yolox.data.coco_dataset import CocoDataset
from yolox.data.report import class_counts
from yolox.report.figures import new_figure, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NUM_BARS = 30
_COCO_BORDERS = (32, 96)
"""Sides in pixels between what COCO calls small, medium and large."""


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
    axes.legend(loc="upper left")
