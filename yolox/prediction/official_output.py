"""The outputs of ONNX files of this package and of official YOLOX, as boxes and scores; NumPy only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolox.class_names import COCO_NAMES, clean_name
from yolox.errors import ModelFileError
from yolox.structures import OUTPUT_DESCRIPTIONS, Size

_STRIDES = (8, 16, 32)
_LARGEST_SIDE = 8192


def boxes_and_scores(
    outputs: Sequence[Any], size: Size, path: Path, description: str = ""
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return boxes ``[B, A, 4]`` (xyxy, pixels of the input) and scores ``[B, A, C]``.

    Args:
        outputs: Boxes and scores, or the official ``[B, A, 5 + C]``: decoded to pixels, or relative to the grid of
            strides 8, 16 and 32 (then ``cx = (x + column) * stride`` and ``w = exp(log w) * stride``).
        size: Height and width of the network's input.
        path: The file, for messages.
        description: Which of the two the one output is, as its metadata tells it (`OUTPUT_DESCRIPTIONS`); without one
            the numbers tell.

    Raises:
        ModelFileError: When the shapes are those of no such model, or objectness is 1 everywhere.
    """
    arrays = [np.asarray(output, dtype=np.float32) for output in outputs]
    if len(arrays) == 2 and arrays[0].ndim == arrays[1].ndim == 3 and arrays[0].shape[2] == 4:
        return arrays[0], arrays[1]
    grid, strides = _grid(size)
    if len(arrays) != 1 or arrays[0].ndim != 3 or arrays[0].shape[1] != len(strides) or arrays[0].shape[2] < 6:
        raise ModelFileError(
            f"'{path}' gives {', '.join(str(array.shape) for array in arrays)}; expected boxes [B, {len(strides)}, 4] "
            f"and scores, or [B, {len(strides)}, 5 + classes] at an input of {size.height}x{size.width}."
        )
    rows = arrays[0]
    if rows.size and (rows[..., 4] == 1).all():
        raise ModelFileError(
            f"'{path}' gives an objectness of 1 everywhere, as the files of YOLOv6 do; expected a YOLOX detector."
        )
    centres, sizes = rows[..., :2], rows[..., 2:4]
    if description == OUTPUT_DESCRIPTIONS["grid"] or (
        description != OUTPUT_DESCRIPTIONS["pixels"] and not _in_pixels(centres, size)
    ):
        centres, sizes = (centres + grid) * strides, np.exp(np.clip(sizes, -50, 50)) * strides
    half = sizes / 2
    boxes = np.concatenate((centres - half, centres + half), axis=-1, dtype=np.float32)
    return boxes, rows[..., 4:5] * rows[..., 5:]


def _grid(size: Size) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return column and row ``[A, 2]`` and stride ``[A, 1]`` of each anchor point, level after level, row-major."""
    places, strides = [], []
    for stride in _STRIDES:
        rows, columns = np.meshgrid(np.arange(size.height // stride), np.arange(size.width // stride), indexing="ij")
        places.append(np.stack((columns.ravel(), rows.ravel()), axis=1))
        strides.append(np.full((rows.size, 1), stride))
    return np.concatenate(places).astype(np.float32), np.concatenate(strides).astype(np.float32)


def _in_pixels(centres: NDArray[np.float32], size: Size) -> bool:
    """Tell decoded centres, which are spread over the whole input, from offsets of about one cell."""
    spread = np.percentile(centres[0], 90, axis=0) - np.percentile(centres[0], 10, axis=0)
    return bool((spread > 0.3 * np.array([size.width, size.height])).all())


def class_names_of(metadata: Mapping[str, str], count: int | None) -> tuple[str, ...]:
    """Return the class names in a file's metadata; 80 classes without names are those of COCO.

    Args:
        metadata: Text by name.
        count: Number of classes of its output; None where the output does not tell: then the names alone count.
    """
    names = _entry(metadata, "class_names")
    if isinstance(names, list) and count in (None, len(names)):
        return tuple(clean_name(str(name)) for name in names)
    if count is None:
        return ()
    return COCO_NAMES if count == len(COCO_NAMES) else tuple(f"class {index}" for index in range(count))


def input_size_of(metadata: Mapping[str, str]) -> Size | None:
    """Return the height and width in an ONNX file's metadata, or None where it names none that a detector can have."""
    sides = _entry(metadata, "input_size")
    usable = isinstance(sides, list) and len(sides) == 2 and all(type(side) is int for side in sides)
    if not usable or any(not 0 < side <= _LARGEST_SIDE or side % _STRIDES[-1] for side in sides):
        return None
    return Size(*sides)


def _entry(metadata: Mapping[str, str], name: str) -> Any:
    """Return an entry of an ONNX file's metadata, None where it is absent or no JSON."""
    try:
        return json.loads(metadata.get(name, "null"))
    except (ValueError, RecursionError):  # not only JSONDecodeError: a number may have too many digits
        return None
