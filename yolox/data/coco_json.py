"""Reading and checking the parts of a COCO JSON; every fault is named with its place in the file."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolox.errors import DataError

__all__ = [
    "Categories",
    "check_images",
    "clipped_xyxy",
    "column",
    "ends",
    "read_categories",
    "read_coco_json",
    "read_objects",
]

_LOG = logging.getLogger(__name__)
Categories = tuple[tuple[int, str], ...]
"""Pairs (category id, name), sorted by id; the position is the class index."""


def read_coco_json(path: Path) -> dict[str, Any]:
    """Return the content of a COCO JSON, its main keys checked.

    Raises:
        DataError: When it cannot be read, is no JSON, or lacks ``images``, ``annotations`` or ``categories``.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read '{path}': {error.strerror}; expected a COCO JSON. Check the path.") from error
    except ValueError as error:
        raise DataError(f"'{path}' is not valid JSON: {error}. Is the file complete? Export it again.") from error
    if not isinstance(content, dict):
        raise DataError(f"'{path}' holds {type(content).__name__}; expected the object of a COCO JSON.")
    missing = [key for key in ("images", "annotations", "categories") if not isinstance(content.get(key), list)]
    if missing:
        raise DataError(
            f"'{path}' has no list '{missing[0]}' (keys: {', '.join(map(str, content)) or 'none'}); "
            "expected a COCO detection JSON with images, annotations and categories."
        )
    return content


def column(rows: Sequence[Any], source: str, table: str, key: str, kind: type[np.generic]) -> NDArray[Any]:
    """Return one whole-number field of all rows as an array."""
    try:
        values = np.array([row[key] for row in rows])
        if values.size == 0 or values.dtype.kind in "iu":
            return values.astype(kind)
        if values.dtype.kind == "f" and bool((values == np.floor(values)).all()):
            return values.astype(kind)
    except (KeyError, TypeError, ValueError):
        pass
    place, value = _first_bad(rows, lambda row: float(row[key]).is_integer() and not isinstance(row[key], str))
    raise DataError(
        f"'{source}': {table}[{place}] is {value}; expected a whole number under '{key}'. Correct the file."
    )


def _first_bad(rows: Sequence[Any], is_good: Callable[[Any], bool]) -> tuple[int, str]:
    """Return position and text of the first row that fails."""
    for place, row in enumerate(rows):
        try:
            if is_good(row):
                continue
        except (KeyError, TypeError, ValueError, OverflowError):
            pass
        text = str(row)
        return place, text if len(text) <= 160 else text[:157] + "..."
    return 0, "of an unexpected kind"


def read_categories(rows: Sequence[Any], source: str) -> Categories:
    """Return the categories sorted by id."""
    if not rows:
        raise DataError(f"'{source}' lists no categories; expected at least one.")
    ids = column(rows, source, "categories", "id", np.int64).tolist()
    if len(set(ids)) != len(ids):
        raise DataError(f"'{source}': two categories share an id; expected different ids. Correct the file.")
    named = {number: str(row.get("name") or number) for number, row in zip(ids, rows, strict=True)}
    return tuple(sorted(named.items()))


def check_images(image_ids: NDArray[np.int64], sizes: NDArray[Any], source: str) -> None:
    """Refuse repeated ids and empty sizes."""
    unique, counts = np.unique(image_ids, return_counts=True)
    if len(unique) != len(image_ids):
        raise DataError(f"'{source}': image id {unique[counts > 1][0]} occurs twice; expected different ids.")
    flat = np.flatnonzero(sizes.min(axis=1) <= 0)
    if len(flat):
        raise DataError(f"'{source}': image id {image_ids[flat[0]]} has height x width {sizes[flat[0]]}; expected > 0.")


def read_objects(
    rows: Sequence[Any], source: str, categories: Categories, image_ids: NDArray[np.int64], sizes: NDArray[np.int32]
) -> dict[str, Any]:
    """Return the object columns of the index, sorted by image."""
    owners = _lookup(column(rows, source, "annotations", "image_id", np.int64), image_ids, source, "image")
    known = np.array([number for number, _ in categories], np.int64)
    labels = _lookup(column(rows, source, "annotations", "category_id", np.int64), known, source, "category")
    boxes = _read_boxes(rows, source)
    areas = _read_areas(rows, boxes)
    crowd = np.array([bool(row.get("iscrowd", 0)) for row in rows], np.bool_)
    keep = _keep(boxes, crowd, sizes[owners], source)
    order = np.flatnonzero(keep)[np.argsort(owners[keep], kind="stable")]
    return {
        "object_ends": ends(np.bincount(owners[order], minlength=len(image_ids))),
        "boxes_xywh": boxes[order],
        "areas": areas[order],
        "labels": labels[order].astype(np.int32),
        "crowd": crowd[order],
    }


def _lookup(values: NDArray[np.int64], known: NDArray[np.int64], source: str, what: str) -> NDArray[np.int64]:
    """Return the position of each value in ``known``."""
    order = np.argsort(known)
    places = order[np.searchsorted(known, values, sorter=order).clip(max=len(known) - 1)]
    unknown = np.flatnonzero(known[places] != values)
    if len(unknown):
        table = "images" if what == "image" else "categories"
        raise DataError(
            f"'{source}': annotations[{unknown[0]}] names {what} id {values[unknown[0]]}, which is not in '{table}' "
            f"({len(unknown)} such annotations). Add it or remove these annotations."
        )
    return np.asarray(places, np.int64)


def _read_areas(rows: Sequence[Any], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the areas of the file; where there is none, that of the box."""
    given = [row.get("area") for row in rows]
    areas = np.array([area if isinstance(area, (int, float)) else np.nan for area in given], np.float64)
    return np.where(np.isfinite(areas), areas, boxes[:, 2] * boxes[:, 3])


def _read_boxes(rows: Sequence[Any], source: str) -> NDArray[np.float64]:
    """Return ``[M, 4]`` xywh; only finite numbers pass."""
    if not rows:
        return np.zeros((0, 4), np.float64)
    try:
        boxes = np.array([row["bbox"] for row in rows], np.float64)
        if boxes.shape == (len(rows), 4) and bool(np.isfinite(boxes).all()):
            return boxes
    except (KeyError, TypeError, ValueError):
        pass
    place, text = _first_bad(rows, lambda row: bool(np.isfinite(np.array(row["bbox"], np.float64).reshape(4)).all()))
    raise DataError(
        f"'{source}': annotations[{place}] is {text}; expected 'bbox' with four finite numbers (x, y, width, height). "
        "Correct or remove it."
    )


def clipped_xyxy(boxes_xywh: NDArray[np.float64], sizes: NDArray[Any]) -> NDArray[np.float64]:
    """Return boxes given as xywh as xyxy within their images, ``sizes`` being height and width."""
    limits = np.concatenate([sizes[:, ::-1], sizes[:, ::-1]], axis=1)
    boxes = np.concatenate([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], axis=1)
    return np.asarray(np.clip(boxes, 0, limits), np.float64)


def _keep(boxes: NDArray[np.float64], crowd: NDArray[np.bool_], sizes: NDArray[Any], source: str) -> NDArray[np.bool_]:
    """Return which objects have any area inside their image; say how many have not, or reach beyond it."""
    inside = clipped_xyxy(boxes, sizes)
    whole = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    keep = crowd | ((inside[:, 2] > inside[:, 0]) & (inside[:, 3] > inside[:, 1]))
    beyond = np.abs(inside - whole).max(axis=1, initial=0.0) > 1  # labels rounded to the border are no fault
    num_clipped, num_dropped = int((beyond & keep).sum()), int((~keep).sum())
    if num_clipped or num_dropped:
        _LOG.warning(
            "%s: of %d boxes, %d reach beyond their image and were clipped, %d have no area inside it and were dropped",
            *(source, len(boxes), num_clipped, num_dropped),
        )
    return keep


def ends(lengths: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where each of consecutive pieces starts, and the end of the last."""
    return np.concatenate([[0], np.cumsum(np.asarray(lengths, np.int64))]).astype(np.int64)
