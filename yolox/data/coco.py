"""An index of a detection data set in COCO's form, held in a handful of arrays: a few hundred bytes per image."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolox.errors import DataError
from yolox.structures import Size

__all__ = ["Categories", "CocoDataset", "dataset_from_coco", "load_coco", "read_coco_json"]

_LOG = logging.getLogger(__name__)
Categories = tuple[tuple[int, str], ...]
"""Pairs (category id, name), sorted by id; the position is the class index."""


@dataclass(frozen=True, eq=False)
class CocoDataset:
    """Images and labelled objects of one split; ``dataset_from_coco`` builds it.

    Axes: N images in the order of the file, M objects (crowd regions included) sorted by image.

    Args:
        source: Where the labels came from, for messages.
        image_dir: The folder that file names start from.
        categories: ``(id, name)`` sorted by id.
        image_ids: ``[N]`` int64.
        sizes: ``[N, 2]`` int32, height and width.
        names: File names, UTF-8, one after the other.
        name_ends: ``[N + 1]`` int64, where each name starts in ``names``.
        object_ends: ``[N + 1]`` int64, where each image's objects start.
        boxes_xywh: ``[M, 4]`` float64, as in the file.
        areas: ``[M]`` float64.
        labels: ``[M]`` int32 class indices.
        crowd: ``[M]`` bool; such regions are left out of training and ignored by the evaluation.
    """

    source: str
    image_dir: Path
    categories: Categories
    image_ids: NDArray[np.int64]
    sizes: NDArray[np.int32]
    names: bytes
    name_ends: NDArray[np.int64]
    object_ends: NDArray[np.int64]
    boxes_xywh: NDArray[np.float64]
    areas: NDArray[np.float64]
    labels: NDArray[np.int32]
    crowd: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in the order of the class indices."""
        return tuple(name for _, name in self.categories)

    @property
    def category_ids(self) -> tuple[int, ...]:
        """Category ids in the order of the class indices."""
        return tuple(number for number, _ in self.categories)

    @property
    def nbytes(self) -> int:
        """Memory that the index holds."""
        arrays = (self.image_ids, self.sizes, self.name_ends, self.object_ends)
        arrays_m = (self.boxes_xywh, self.areas, self.labels, self.crowd)
        return len(self.names) + sum(array.nbytes for array in (*arrays, *arrays_m))

    def file_name(self, index: int) -> str:
        """Return the file name of an image as the data set gives it."""
        start, end = self.name_ends[index], self.name_ends[index + 1]
        return self.names[start:end].decode("utf-8")

    def path(self, index: int) -> Path:
        """Return where the image file lies."""
        return self.image_dir / self.file_name(index)

    def size(self, index: int) -> Size:
        """Return the size that the labels refer to."""
        height, width = self.sizes[index]
        return Size(int(height), int(width))

    def objects(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return boxes (xyxy, clipped to the image) and labels for training: without crowd regions."""
        start, end = self.object_ends[index], self.object_ends[index + 1]
        wanted = ~self.crowd[start:end]
        boxes = _clipped_xyxy(self.boxes_xywh[start:end][wanted], self.sizes[index][None])
        return boxes.astype(np.float32), self.labels[start:end][wanted].astype(np.int64)

    def labelled(self) -> NDArray[np.int64]:
        """Return the indices of the images that have at least one object to learn."""
        running = np.concatenate([[0], np.cumsum(~self.crowd)])
        return np.flatnonzero(running[self.object_ends[1:]] > running[self.object_ends[:-1]])

    def ground_truth_json(self) -> dict[str, Any]:
        """Return the split as a COCO dict for faster-coco-eval or pycocotools."""
        images = [
            {"id": int(number), "file_name": self.file_name(i), "height": int(height), "width": int(width)}
            for i, (number, (height, width)) in enumerate(zip(self.image_ids, self.sizes, strict=True))
        ]
        owners = np.repeat(self.image_ids, np.diff(self.object_ends))
        columns = zip(owners, self.labels, self.boxes_xywh, self.areas, self.crowd, strict=True)
        annotations = [
            # ids count from 1: COCO's evaluation reads a match with id 0 as no match
            {
                "id": i + 1,
                "image_id": int(owner),
                "category_id": self.categories[label][0],
                "bbox": box.tolist(),
                "area": float(area),
                "iscrowd": int(crowd),
            }
            for i, (owner, label, box, area, crowd) in enumerate(columns)
        ]
        categories = [{"id": number, "name": name} for number, name in self.categories]
        return {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}


def load_coco(annotations: Path, image_dirs: Sequence[Path], categories: Categories | None = None) -> CocoDataset:
    """Return the index of a COCO JSON.

    Args:
        annotations: The JSON file.
        image_dirs: Folders to look for the images in; the first that holds one of them is taken.
        categories: Categories of the training split; the file may use no others.

    Raises:
        DataError: For a file that is missing or malformed, or folders without the images.
    """
    return dataset_from_coco(read_coco_json(annotations), str(annotations), image_dirs, categories)


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


def dataset_from_coco(
    content: Mapping[str, Any], source: str, image_dirs: Sequence[Path], categories: Categories | None = None
) -> CocoDataset:
    """Return the index of a COCO dict; see ``load_coco``."""
    own = _read_categories(content["categories"], source)
    images = content["images"]
    if not images:
        raise DataError(f"'{source}' lists no images; expected at least one.")
    image_ids = _column(images, source, "images", "id", np.int64)
    sizes = np.stack([_column(images, source, "images", key, np.int32) for key in ("height", "width")], axis=1)
    _check_images(image_ids, sizes, source)
    names = [_file_name(image) for image in images]
    encoded = [name.encode("utf-8") for name in names]
    objects = _read_objects(content["annotations"], source, own, image_ids, sizes)
    if categories is not None:
        objects["labels"] = _relabel(objects["labels"], own, categories, source)
    return CocoDataset(
        source=source,
        image_dir=_find_image_dir(image_dirs, names, source),
        categories=categories or own,
        image_ids=image_ids,
        sizes=sizes,
        names=b"".join(encoded),
        name_ends=_ends([len(name) for name in encoded]),
        **objects,
    )


def _ends(lengths: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(np.asarray(lengths, np.int64))]).astype(np.int64)


def _file_name(image: Mapping[str, Any]) -> str:
    name = image.get("file_name")
    return str(name) if name else f"{int(image['id']):012d}.jpg"


def _column(rows: Sequence[Any], source: str, table: str, key: str, kind: type[np.generic]) -> NDArray[Any]:
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


def _read_categories(rows: Sequence[Any], source: str) -> Categories:
    if not rows:
        raise DataError(f"'{source}' lists no categories; expected at least one.")
    ids = _column(rows, source, "categories", "id", np.int64).tolist()
    if len(set(ids)) != len(ids):
        raise DataError(f"'{source}': two categories share an id; expected different ids. Correct the file.")
    named = {number: str(row.get("name") or number) for number, row in zip(ids, rows, strict=True)}
    return tuple(sorted(named.items()))


def _check_images(image_ids: NDArray[np.int64], sizes: NDArray[Any], source: str) -> None:
    unique, counts = np.unique(image_ids, return_counts=True)
    if len(unique) != len(image_ids):
        raise DataError(f"'{source}': image id {unique[counts > 1][0]} occurs twice; expected different ids.")
    flat = np.flatnonzero(sizes.min(axis=1) <= 0)
    if len(flat):
        raise DataError(f"'{source}': image id {image_ids[flat[0]]} has height x width {sizes[flat[0]]}; expected > 0.")


def _read_objects(
    rows: Sequence[Any], source: str, categories: Categories, image_ids: NDArray[np.int64], sizes: NDArray[np.int32]
) -> dict[str, Any]:
    """Return the object columns of the index, sorted by image."""
    owners = _lookup(_column(rows, source, "annotations", "image_id", np.int64), image_ids, source, "image")
    known = np.array([number for number, _ in categories], np.int64)
    labels = _lookup(_column(rows, source, "annotations", "category_id", np.int64), known, source, "category")
    boxes = _read_boxes(rows, source)
    areas = _read_areas(rows, boxes)
    crowd = np.array([bool(row.get("iscrowd", 0)) for row in rows], np.bool_)
    keep = _keep(boxes, crowd, sizes[owners], source)
    order = np.flatnonzero(keep)[np.argsort(owners[keep], kind="stable")]
    return {
        "object_ends": _ends(np.bincount(owners[order], minlength=len(image_ids))),
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


def _clipped_xyxy(boxes_xywh: NDArray[np.float64], sizes: NDArray[Any]) -> NDArray[np.float64]:
    limits = np.concatenate([sizes[:, ::-1], sizes[:, ::-1]], axis=1)
    boxes = np.concatenate([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], axis=1)
    return np.asarray(np.clip(boxes, 0, limits), np.float64)


def _keep(boxes: NDArray[np.float64], crowd: NDArray[np.bool_], sizes: NDArray[Any], source: str) -> NDArray[np.bool_]:
    """Return which objects have any area inside their image; say how many have not, or reach beyond it."""
    inside = _clipped_xyxy(boxes, sizes)
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


def _relabel(labels: NDArray[np.int32], own: Categories, wanted: Categories, source: str) -> NDArray[np.int32]:
    """Return the labels as indices into the training split's categories, matched by name."""
    index = {name: i for i, (_, name) in enumerate(wanted)}
    used = set(np.unique(labels).tolist())
    unknown = [name for i, (_, name) in enumerate(own) if i in used and name not in index]
    if unknown:
        raise DataError(
            f"'{source}' uses category '{unknown[0]}', which the training labels lack "
            f"(they have {', '.join(list(index)[:8])}). Give both splits the same categories."
        )
    table = np.array([index.get(name, -1) for _, name in own], np.int32)
    return table[labels]


def _find_image_dir(candidates: Sequence[Path], names: Sequence[str], source: str) -> Path:
    """Return the first folder that holds one of a few images spread over the data set."""
    probes = [names[i] for i in np.linspace(0, len(names) - 1, min(len(names), 16)).astype(int)]
    for folder in candidates:
        if any((folder / name).is_file() for name in probes):
            return folder
    raise DataError(
        f"none of the images of '{source}' was found (for instance '{probes[0]}') in "
        f"{', '.join(repr(str(folder)) for folder in candidates) or 'any folder'}. "
        "Name their folder with train_images / val_images."
    )
