"""The built-in sample set: drawn shapes on textured grounds, a data set for a machine without one.

The same on every machine, no download; small, yet with several classes, sizes, overlaps, cut objects and empty images.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from yolox.errors import DataError
from yolox.files import cache_root
from yolox.structures import Image
from yolox.temporary_folders import TemporaryFolder

_LOG = logging.getLogger(__name__)
CLASS_NAMES = ("circle", "square", "triangle", "star", "cross", "ring")
VERSION = 1
"""Raise it with every change of the drawing, so that no stale set is used."""
NUM_TRAIN, NUM_VAL = 160, 40
_SEED = 20240607
_MIN_SIDE, _MAX_SIDE = 320, 480
_EMPTY_SHARE = 0.06
_MAX_COVERED = 0.45  # share of an object that later ones may hide
_MIN_VISIBLE = 0.55  # share of an object that must lie inside the image
Points = NDArray[np.float64]


def sample_set_dir() -> Path:
    """Return the folder of the sample set, drawn if it is not there yet.

    It lies in ``cache_root()``.

    Raises:
        DataError: When it cannot be written.
    """
    target = cache_root() / f"shapes-{VERSION}"
    if target.is_dir():
        return target
    _LOG.info("drawing the built-in sample set into %s", target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFolder(target.name, target.parent) as temporary:
            drawn = temporary / "drawn"
            draw_sample_set(drawn, NUM_TRAIN, NUM_VAL)
            drawn.chmod(0o755)
            drawn.rename(target)
    except OSError as error:
        if target.is_dir():  # another process was faster
            return target
        raise DataError(
            f"cannot draw the sample set into '{target}': {error.strerror}. Set YOLOX_CACHE to a writable folder, "
            "or give data_dir."
        ) from error
    return target


def draw_sample_set(folder: Path, num_train: int, num_val: int) -> None:
    """Write ``annotations/``, ``train2017/`` and ``val2017/`` into ``folder``."""
    (folder / "annotations").mkdir(parents=True)
    for split, count, first_id in (("train2017", num_train, 1), ("val2017", num_val, num_train + 1)):
        (folder / split).mkdir()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for image_id in range(first_id, first_id + count):
            image, objects = draw_image(np.random.default_rng([_SEED, image_id]))
            name = f"{image_id:012d}.jpg"
            if not cv2.imwrite(str(folder / split / name), image, [cv2.IMWRITE_JPEG_QUALITY, 92]):
                raise OSError(5, f"could not write {name}")
            images.append({"id": image_id, "file_name": name, "height": image.shape[0], "width": image.shape[1]})
            for label, (x, y, width, height) in objects:
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": label + 1,
                        "bbox": [x, y, width, height],
                        "area": width * height,
                        "iscrowd": 0,
                    }
                )
        categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASS_NAMES)]
        content = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content), encoding="utf-8")


def draw_image(rng: np.random.Generator) -> tuple[Image, list[tuple[int, tuple[int, int, int, int]]]]:
    """Return a drawn image and its objects: class index and box (x, y, width, height)."""
    height, width = (int(side) for side in rng.integers(_MIN_SIDE, _MAX_SIDE + 1, 2))
    image = _background(height, width, rng)
    if rng.random() < _EMPTY_SHARE:
        return image, []
    objects: list[tuple[int, tuple[int, int, int, int]]] = []
    masks: list[NDArray[np.bool_]] = []
    wanted = int(rng.integers(1, 8))
    for _ in range(4 * wanted):
        if len(objects) == wanted:
            break
        label = int(rng.integers(len(CLASS_NAMES)))
        mask, full_area = _shape_mask(label, height, width, rng)
        covers = [int(np.count_nonzero(mask & other)) / max(1, int(np.count_nonzero(other))) for other in masks]
        visible = np.count_nonzero(mask)
        if visible < _MIN_VISIBLE * full_area or max(covers, default=0.0) > _MAX_COVERED:
            continue
        masks = [other & ~mask for other in masks]
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)
        _paint_(image, mask, rng)
        masks.append(mask)
        objects.append((label, box))
    noise = rng.normal(0, rng.uniform(0, 8), image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8), objects


def _background(height: int, width: int, rng: np.random.Generator) -> Image:
    """Return one of: gradient, blurred noise, stripes, patches; in muted colours."""
    first, second = rng.uniform(20, 235, (2, 3))
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    kind = int(rng.integers(4))
    angle = rng.uniform(0, np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    if kind == 0:
        weight = (along - along.min()) / np.ptp(along)
    elif kind == 1:
        cells = rng.random((int(rng.integers(4, 40)), int(rng.integers(4, 40))))
        weight = np.clip(cv2.resize(cells, (width, height), interpolation=cv2.INTER_CUBIC), 0, 1)
    elif kind == 2:
        weight = 0.5 + 0.5 * np.sin(along * 2 * np.pi / rng.uniform(8, 60))
    else:
        cells = rng.random((int(rng.integers(2, 12)), int(rng.integers(2, 12))))
        weight = cv2.resize(cells, (width, height), interpolation=cv2.INTER_NEAREST)
    ground = first + (second - first) * weight[..., None] * rng.uniform(0.3, 0.8)
    grain = rng.normal(0, rng.uniform(0, 14), (height, width, 1))
    return np.asarray(np.clip(ground + grain, 0, 255), np.uint8)


def _outline(label: int) -> Points:
    """Return the corners of a shape of radius one."""

    def polar(angles: Points, radii: Points | float) -> Points:
        return np.stack([np.cos(angles) * radii, np.sin(angles) * radii], axis=1)

    makers: tuple[Callable[[], Points], ...] = (
        lambda: polar(np.linspace(0, 2 * np.pi, 48, endpoint=False), 1.0),
        lambda: polar(np.pi / 4 + np.arange(4) * np.pi / 2, 1.2),
        lambda: polar(-np.pi / 2 + np.arange(3) * 2 * np.pi / 3, 1.2),
        lambda: polar(-np.pi / 2 + np.arange(10) * np.pi / 5, np.where(np.arange(10) % 2 == 0, 1.2, 0.48)),
        lambda: (
            1.05
            * np.array(
                [
                    (-3, -1),
                    (-1, -1),
                    (-1, -3),
                    (1, -3),
                    (1, -1),
                    (3, -1),
                    (3, 1),
                    (1, 1),
                    (1, 3),
                    (-1, 3),
                    (-1, 1),
                    (-3, 1),
                ]
            )
            / 3
        ),
        lambda: polar(np.linspace(0, 2 * np.pi, 48, endpoint=False), 1.0),
    )
    return makers[label]()


def _shape_mask(label: int, height: int, width: int, rng: np.random.Generator) -> tuple[NDArray[np.bool_], int]:
    """Return a shape somewhere in the image, and its number of pixels had it not been cut by the border."""
    radius = np.exp(rng.uniform(np.log(16), np.log(90)))
    centre = rng.uniform(0, 1, 2) * (width, height)
    turn = rng.uniform(-0.3, 0.3)
    stretch = rng.uniform(0.85, 1.18)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    points = _outline(label) * (stretch, 1 / stretch) @ rotation.T * radius + centre
    margin = int(2 * radius) + 2
    canvas = np.zeros((height + 2 * margin, width + 2 * margin), np.uint8)
    cv2.fillPoly(canvas, [np.rint(points + margin).astype(np.int32)], 1)
    if CLASS_NAMES[label] == "ring":
        inner = (points - centre) * 0.55 + centre
        cv2.fillPoly(canvas, [np.rint(inner + margin).astype(np.int32)], 0)
    inside = canvas[margin : margin + height, margin : margin + width]
    return inside.astype(np.bool_), int(np.count_nonzero(canvas))


def _paint_(image: Image, mask: NDArray[np.bool_], rng: np.random.Generator) -> None:
    """Fill the mask with a colour that stands out from what lies under it, slightly shaded."""
    under = image[mask].mean(axis=0)
    colours = rng.uniform(0, 255, (8, 3))
    colour = colours[np.abs(colours - under).sum(axis=1).argmax()]
    rows, columns = np.nonzero(mask)
    shade = 1 + 0.2 * (rows - rows.mean()) / max(1.0, float(np.ptp(rows))) * rng.uniform(-1, 1)
    image[rows, columns] = np.clip(colour * shade[:, None], 0, 255)
    if rng.random() < 0.4:
        outline, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(image, outline, -1, colour.tolist()[::-1], 1)
