"""Operations on one image and its boxes. They return new values; every random number comes from the generator passed.

The numbers are those of official YOLOX, ``yolox/data/data_augment.py``. Images are uint8 BGR ``[H, W, 3]``.
"""

from __future__ import annotations

import math
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from yolox.structures import Image, Size

FILL = 114
"""Grey level of every pixel that no image covers."""
_HSV_GAINS = (5, 30, 30)
Boxes = NDArray[np.float32]


def fit_ratio(size: Size, target: Size) -> float:
    """Return the factor that makes ``size`` fit into ``target`` with its proportions kept."""
    return min(target.height / size.height, target.width / size.width)


def fitted_size(size: Size, target: Size) -> Size:
    """Return ``size`` scaled to fit into ``target``, truncated to whole pixels (never below one)."""
    ratio = fit_ratio(size, target)
    return Size(max(1, int(size.height * ratio)), max(1, int(size.width * ratio)))


def resize(image: Image, size: Size) -> Image:
    """Return the image at ``size``, bilinear; the image itself when it has that size already."""
    if image.shape[:2] == tuple(size):
        return image
    return cast(Image, cv2.resize(image, (size.width, size.height), interpolation=cv2.INTER_LINEAR))


PREPROCESSING = {"layout": "NCHW", "channels": "BGR", "range": [0, 255], "resize": "letterbox", "fill": FILL}
"""What files of a model say of its input: batches of what `letterbox` returns."""


def letterbox(image: Image, target: Size) -> tuple[Image, float]:
    """Return the image fitted into the top-left corner of a grey canvas, and the factor of its boxes."""
    size = Size(*image.shape[:2])
    inner = fitted_size(size, target)
    if inner == target:
        return resize(image, inner), fit_ratio(size, target)
    canvas: Image = np.full((*target, 3), FILL, np.uint8)
    canvas[: inner.height, : inner.width] = resize(image, inner)
    return canvas, fit_ratio(size, target)


def jitter_hsv(image: Image, rng: np.random.Generator) -> Image:
    """Return the image with hue, saturation and value shifted by up to 5, 30, 30, each with probability one half."""
    gains = rng.uniform(-1, 1, 3) * _HSV_GAINS
    gains *= rng.integers(0, 2, 3)
    hue, saturation, value = (int(gain) for gain in gains)
    if not (hue or saturation or value):
        return image
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
    if hue < 0:
        turned = ((np.arange(256) + hue) % 180).astype(np.uint8)
        cv2.insertChannel(cv2.LUT(cv2.extractChannel(hsv, 0), turned), hsv, 0)
    # saturating, as wanted; a hue of 180 and more means the same to OpenCV as that less 180
    cv2.add(hsv, np.array([max(hue, 0), saturation, value, 0], np.float64), dst=hsv)
    return cast(Image, cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR, dst=hsv))


def flip_image(image: Image) -> Image:
    """Return the image mirrored left to right, contiguous."""
    return cast(Image, cv2.flip(image, 1))


def flip_boxes(boxes_xyxy: Boxes, width: int) -> Boxes:
    """Return the boxes mirrored left to right in an image of ``width`` pixels."""
    flipped = boxes_xyxy.copy()
    flipped[:, 0::2] = width - boxes_xyxy[:, 2::-2]
    return flipped


def affine_matrix(
    target: Size,
    rng: np.random.Generator,
    *,
    degrees: float,
    translate: float,
    scales: tuple[float, float],
    shear: float,
) -> NDArray[np.float64]:
    """Draw a ``[2, 3]`` matrix: rotate and scale about the origin (the top-left corner), shear, then shift.

    Args:
        target: Size of the warped image; the shift is a share of it.
        rng: Source of randomness.
        degrees: Largest rotation either way.
        translate: Largest shift as a share of the target.
        scales: Smallest and largest scale.
        shear: Largest shear angle either way, in degrees.
    """
    angle = math.radians(rng.uniform(-degrees, degrees))
    scale = rng.uniform(*scales)
    shear_x, shear_y = (math.tan(math.radians(value)) for value in rng.uniform(-shear, shear, 2))
    shift_x, shift_y = rng.uniform(-translate, translate, 2)
    cosine, sine = scale * math.cos(angle), scale * math.sin(angle)
    rotation = np.array([[cosine, sine], [-sine, cosine]])
    mix = np.array([[1.0, shear_y], [shear_x, 1.0]])
    shift = np.array([[shift_x * target.width], [shift_y * target.height]])
    return np.concatenate([mix @ rotation, shift], axis=1)


def warp_affine(image: Image, matrix: NDArray[np.float64], target: Size) -> Image:
    """Return the image warped to ``target``; what it does not cover is grey."""
    # with a fourth channel OpenCV takes less than half the time for the same pixels
    four = cv2.cvtColor(image, cv2.COLOR_BGR2BGRA)
    warped = cv2.warpAffine(four, matrix, (target.width, target.height), borderValue=(FILL,) * 4)
    return cast(Image, cv2.cvtColor(warped, cv2.COLOR_BGRA2BGR))


def warp_boxes(boxes_xyxy: Boxes, matrix: NDArray[np.float64], target: Size) -> Boxes:
    """Return the extent of each box's four warped corners, clipped to ``target``."""
    x, y = boxes_xyxy[:, [0, 2, 0, 2]], boxes_xyxy[:, [1, 1, 3, 3]]
    warped_x = matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2]
    warped_y = matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2]
    edges = np.stack([warped_x.min(1), warped_y.min(1), warped_x.max(1), warped_y.max(1)], axis=1)
    return clip_boxes(edges.astype(np.float32), target)


def clip_boxes(boxes_xyxy: Boxes, size: Size) -> Boxes:
    """Return the boxes clipped to an image of ``size``."""
    limits = np.array([size.width, size.height, size.width, size.height], np.float32)
    return np.clip(boxes_xyxy, 0, limits)


def has_area(boxes_xyxy: Boxes) -> NDArray[np.bool_]:
    """Return which boxes are wider and higher than nothing."""
    return np.asarray(np.all(boxes_xyxy[:, 2:] > boxes_xyxy[:, :2], axis=1), np.bool_)


def xyxy_to_cxcywh(boxes_xyxy: Boxes) -> Boxes:
    """Return the boxes as centre and size."""
    sizes = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    return np.concatenate([boxes_xyxy[:, :2] + 0.5 * sizes, sizes], axis=1)
