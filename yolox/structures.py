"""The values that pass between the parts; every shape is written here once.

Axes: B batch, A anchor points, C classes, G ground-truth boxes (padded), P positive anchors, N boxes of one image.
Boxes are in pixels. ``xyxy`` means left, top, right, bottom; ``cxcywh`` means centre and size.
Types that carry tensors through loaders, Lightning or ``torch.export`` are named tuples, because all three open those.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # the command line reads Size without paying for torch
    from torch import Tensor

Image = NDArray[np.uint8]
"""An image ``[height, width, 3]``, BGR, uint8."""


class Size(NamedTuple):
    """Height and width in pixels, in this order."""

    height: int
    width: int


@dataclass(frozen=True)
class Sample:
    """One image with its labels, as a data set gives it and every augmentation returns it.

    Args:
        image: ``[H, W, 3]`` uint8 BGR.
        boxes_xyxy: ``[N, 4]`` float32, pixels of ``image``.
        labels: ``[N]`` int64, contiguous class indices.
        image_id: The id in the data set.
        original_size: Size of the file before any resizing.
        num_cut: Objects that were left out because there were too many for one image.
    """

    image: Image
    boxes_xyxy: NDArray[np.float32]
    labels: NDArray[np.int64]
    image_id: int
    original_size: Size
    num_cut: int = 0


class Targets(NamedTuple):
    """Ground truth of a batch, padded to the same G.

    ``boxes_cxcywh`` [B, G, 4] float32 in pixels of the network's input; ``labels`` [B, G] int64; ``valid`` [B, G] bool.
    """

    boxes_cxcywh: Tensor
    labels: Tensor
    valid: Tensor


class Batch(NamedTuple):
    """What a loader yields.

    ``images`` [B, 3, H, W] uint8 BGR (0...255, letterboxed with 114); ``image_ids`` [B] int64;
    ``original_sizes`` [B, 2] int64 (height, width); ``num_cut`` [B] int64, objects left out because there were too
    many. ``targets`` has G = 0 in evaluation loaders.
    """

    images: Tensor
    targets: Targets
    image_ids: Tensor
    original_sizes: Tensor
    num_cut: Tensor


class Predictions(NamedTuple):
    """Raw output of the network, in training and in evaluation alike.

    ``boxes`` [B, A, 4] grid-relative (x, y, log w, log h); ``objectness`` [B, A, 1] and ``classes`` [B, A, C] logits.
    Anchors run over the levels in the order of ``strides``, row-major in each level of ``level_sizes`` (height, width).
    """

    boxes: Tensor
    objectness: Tensor
    classes: Tensor
    level_sizes: tuple[Size, ...]
    strides: tuple[int, ...]


class Decoded(NamedTuple):
    """Decoded predictions: ``boxes_xyxy`` [B, A, 4] in input pixels, ``scores`` [B, A, C], objectness times class."""

    boxes_xyxy: Tensor
    scores: Tensor


@dataclass(frozen=True)
class Detections:
    """Final detections of one image, best score first.

    Args:
        boxes_xyxy: ``[N, 4]`` float32.
        scores: ``[N]`` float32.
        labels: ``[N]`` int64 class indices.
    """

    boxes_xyxy: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]


class Assignment(NamedTuple):
    """SimOTA's answer for a whole batch.

    ``positive`` [B, A] bool; ``gt_index`` [P] int64, index into G of the object matched by each positive anchor, in the
    row-major order of ``positive``; ``iou`` [P] float32 of that pair.
    """

    positive: Tensor
    gt_index: Tensor
    iou: Tensor


class LossTerms(NamedTuple):
    """Scalars of one step: ``total`` = ``iou`` (already times 5) + ``objectness`` + ``classes`` + ``l1``.

    ``num_foreground`` is the number of positives per ground-truth object.
    """

    total: Tensor
    iou: Tensor
    objectness: Tensor
    classes: Tensor
    l1: Tensor
    num_foreground: Tensor

    def as_log(self) -> dict[str, Any]:
        """Return the terms as detached values under the names that loggers and the progress line show."""
        return {f"train/{name}": value.detach() for name, value in self._asdict().items()}


OUTPUT_DESCRIPTIONS = {
    "grid": "output: [B, A, 5 + C] = x, y, log w, log h relative to the grid (decode with strides 8, 16, 32), object, "
    "classes",
    "pixels": "output: [B, A, 5 + C] = cx, cy, w, h in pixels, object, classes",
    "boxes_scores": "outputs: boxes [B, A, 4] xyxy in pixels, scores [B, A, C] = object x class",
    "detections": "detections: [N, 7] = image of the batch, left, top, right, bottom in pixels, class, score",
}
"""What the outputs of a deployed detector hold, as its metadata tells it; B images, A anchor points, C classes, N
detections of the whole batch."""
