"""Mosaic of four images, the random affine that follows it, and MixUp.

The numbers are those of official YOLOX, ``yolox/data/datasets/mosaicdetection.py`` and ``yolox/data/data_augment.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from yolox.data.image_ops import FILL, affine_matrix, clip_boxes, has_area, letterbox, resize, warp_affine, warp_boxes
from yolox.data.transforms import flip
from yolox.structures import Image, Sample, Size

_REACH = 2.0  # pixels: bilinear interpolation looks one further, and so do boxes on a size cut to whole pixels
Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Affine:
    """Ranges of the affine transform.

    Args:
        degrees: Largest rotation either way.
        translate: Largest shift, as a share of the image.
        scales: Smallest and largest scale.
        shear: Largest shear either way, in degrees.
    """

    degrees: float = 10.0
    translate: float = 0.1
    scales: tuple[float, float] = (0.1, 2.0)
    shear: float = 2.0

    def draw(self, target: Size, rng: np.random.Generator) -> Matrix:
        """Draw the ``[2, 3]`` matrix of one image; see ``affine_matrix``."""
        ranges = {"degrees": self.degrees, "translate": self.translate, "shear": self.shear}
        return affine_matrix(target, rng, scales=self.scales, **ranges)


def mosaic_centre(target: Size, rng: np.random.Generator) -> tuple[int, int]:
    """Draw the row and the column at which four images meet on a canvas twice as large as ``target``."""
    return int(rng.uniform(0.5, 1.5) * target.height), int(rng.uniform(0.5, 1.5) * target.width)


def _corner(place: int, size: Size, centre: tuple[int, int]) -> tuple[int, int]:
    """Return top and left of an image on the canvas; places go top left, top right, bottom left, bottom right."""
    top = centre[0] - size.height if place < 2 else centre[0]
    left = centre[1] - size.width if place % 2 == 0 else centre[1]
    return top, left


def visible_places(sizes: Sequence[Size], centre: tuple[int, int], matrix: Matrix, target: Size) -> list[bool]:
    """Return which of the four images, or their boxes, the warped mosaic can show; on average 2.5 of them.

    The others need not be read: whatever they hold, the result is the same.
    """
    corners = [(place, size, _corner(place, size, centre)) for place, size in enumerate(sizes)]
    regions = [
        (left - _REACH, top - _REACH, left + size.width + _REACH, top + size.height + _REACH)
        for _, size, (top, left) in corners
    ]
    warped = warp_boxes(np.array(regions, np.float32), matrix, target)
    return [bool(seen) for seen in has_area(warped)]


def mosaic(samples: Sequence[Sample], target: Size, centre: tuple[int, int]) -> Sample:
    """Return four samples, each fitted to ``target``, around a centre of a canvas twice as large.

    The first sample stands top left and lends its id. Objects outside the canvas are gone, the rest is clipped to it.
    """
    canvas_size = Size(2 * target.height, 2 * target.width)
    canvas: Image = np.full((*canvas_size, 3), FILL, np.uint8)
    boxes, labels = [], []
    for place, sample in enumerate(samples):
        height, width = sample.image.shape[:2]
        top, left = _corner(place, Size(height, width), centre)
        y0, x0 = max(0, top), max(0, left)
        y1, x1 = min(canvas_size.height, top + height), min(canvas_size.width, left + width)
        canvas[y0:y1, x0:x1] = sample.image[y0 - top : y1 - top, x0 - left : x1 - left]
        boxes.append(sample.boxes_xyxy + np.array([left, top, left, top], np.float32))
        labels.append(sample.labels)
    clipped = clip_boxes(np.concatenate(boxes), canvas_size)
    keep = has_area(clipped)
    return replace(samples[0], image=canvas, boxes_xyxy=clipped[keep], labels=np.concatenate(labels)[keep])


def warp(sample: Sample, target: Size, matrix: Matrix) -> Sample:
    """Return the sample warped into an image of size ``target``, with the objects that it still shows."""
    boxes = warp_boxes(sample.boxes_xyxy, matrix, target)
    keep = has_area(boxes)
    image = warp_affine(sample.image, matrix, target)
    return replace(sample, image=image, boxes_xyxy=boxes[keep], labels=sample.labels[keep])


def mix_up(sample: Sample, partner: Sample, scales: tuple[float, float], rng: np.random.Generator) -> Sample:
    """Return the sample blended half and half with a rescaled, maybe mirrored, maybe cropped partner.

    Where the partner does not reach, the sample is blended with black. The partner's objects come last.
    """
    size = Size(*sample.image.shape[:2])
    image, ratio = letterbox(partner.image, size)
    jitter = rng.uniform(*scales)
    scaled = Size(max(1, int(size.height * jitter)), max(1, int(size.width * jitter)))
    partner = replace(partner, image=resize(image, scaled), boxes_xyxy=partner.boxes_xyxy * np.float32(ratio * jitter))
    partner = replace(partner, boxes_xyxy=clip_boxes(partner.boxes_xyxy, scaled))
    if rng.random() < 0.5:
        partner = flip(partner)
    top = int(rng.integers(max(1, scaled.height - size.height)))
    left = int(rng.integers(max(1, scaled.width - size.width)))
    piece = partner.image[top : top + size.height, left : left + size.width]
    blended = np.right_shift(sample.image, 1, dtype=np.uint8)
    reached = blended[: piece.shape[0], : piece.shape[1]]
    own = sample.image[: piece.shape[0], : piece.shape[1]]
    # the truncated mean without leaving uint8
    reached += (piece >> 1) + (own & piece & 1)
    boxes = clip_boxes(partner.boxes_xyxy - np.array([left, top, left, top], np.float32), size)
    keep = has_area(boxes)
    return replace(
        sample,
        image=blended,
        boxes_xyxy=np.concatenate([sample.boxes_xyxy, boxes[keep]]),
        labels=np.concatenate([sample.labels, partner.labels[keep]]),
    )
