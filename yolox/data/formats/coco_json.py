"""COCO JSON, as COCO itself, CVAT, Label Studio, Roboflow and labelme2coco write it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolox.cpu.cgroups import available_memory
from yolox.data.formats.checks import check_images
from yolox.data.formats.description import Categories, Finding, SplitDescription, findings_about
from yolox.data.formats.image_names import locate_images
from yolox.data.image_files import read_file_size
from yolox.errors import DataError
from yolox.text_files import read_text

_EXPECTED = "a COCO detection JSON with images, annotations and categories"
_MEMORY_PER_BYTE = 9  # what Python's objects take for a byte of JSON
_NO = ("", "0", "false", "no", "off", "none", "null", "n", "f")


def read_coco_json(path: Path) -> dict[str, Any]:
    """Return the content of a COCO JSON, its main keys checked.

    Raises:
        DataError: When it cannot be read, is no JSON, lacks ``images``, ``annotations`` or ``categories``, or would
            take more memory than there is.
    """
    available = available_memory()
    limit = 1 << 40 if available is None else available // _MEMORY_PER_BYTE
    try:
        content = json.loads(read_text(path, "a COCO JSON that fits into memory", limit))
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise DataError(f"'{path}' is not valid JSON: {reason}. Is the file complete? Export it again.") from error
    if not isinstance(content, dict):
        raise DataError(f"'{path}' holds {type(content).__name__}; expected the object of a COCO JSON.")
    missing = [key for key in ("images", "annotations", "categories") if not isinstance(content.get(key), list)]
    if missing:
        raise DataError(
            f"'{path}' has no list '{missing[0]}' (keys: {', '.join(map(str, list(content)[:8])) or 'none'}); "
            f"expected {_EXPECTED}."
        )
    return content


def describe_coco(
    content: Mapping[str, Any], source: str, image_dirs: Sequence[Path], avoid: Iterable[str] = ()
) -> SplitDescription:
    """Return what a COCO dict says.

    Args:
        content: With ``images``, ``annotations`` and ``categories``.
        source: Where it came from, for messages.
        image_dirs: Folders to look for the images in, best first.
        avoid: Names of folders that belong to the other split.

    Raises:
        DataError: For rows that are malformed, or folders without the images.
    """
    findings: list[Finding] = []
    images, rows = content["images"], content["annotations"]
    if not images:
        raise DataError(f"'{source}' lists no images; expected at least one.")
    image_ids = _column(images, source, "images", "id")
    names = [_file_name(image, number) for image, number in zip(images, image_ids.tolist(), strict=True)]
    sizes = _read_sizes(images, names, image_dirs, source, findings)
    check_images(image_ids, sizes, source)
    owners = _lookup(_column(rows, source, "annotations", "image_id"), image_ids, source, "image")
    category_ids = _column(rows, source, "annotations", "category_id")
    categories = _read_categories(content["categories"], set(category_ids.tolist()), source, findings)
    known = np.array([number for number, _ in categories], np.int64)
    boxes = _read_boxes(rows, source)
    folder, names, located = locate_images(names, image_dirs, source, avoid)
    findings += located
    repeated = [name for name, times in Counter(names).items() if times > 1]
    text = f"{source}: {len(repeated)} image files are listed under several ids, each with boxes of its own"
    findings += findings_about(repeated, "warning", "images-named-twice", text)
    return SplitDescription(
        source=source,
        image_dir=folder,
        names=names,
        image_ids=image_ids,
        sizes=sizes,
        categories=categories,
        owners=owners,
        labels=_lookup(category_ids, known, source, "category"),
        boxes_xywh=boxes,
        areas=_read_areas(rows, boxes),
        crowd=np.array([_flag(row.get("iscrowd", 0)) for row in rows], np.bool_),
        findings=findings,
    )


def _file_name(image: Mapping[str, Any], number: int) -> str:
    name = image.get("file_name")
    return str(name) if name else f"{number:012d}.jpg"


def _flag(value: object) -> bool:
    """Return a flag that may be written as text: ``"0"`` and ``"false"`` are no."""
    return value.strip().lower() not in _NO if isinstance(value, str) else bool(value)


def _column(rows: Sequence[Any], source: str, table: str, key: str) -> NDArray[np.int64]:
    """Return one whole-number field of all rows, also where it is written as text."""
    try:
        given = [row[key] for row in rows]
        values = np.array([int(value) if isinstance(value, str) else value for value in given])
        if values.ndim != 1:  # lists in place of numbers
            raise ValueError(values.shape)
        if values.size == 0 or values.dtype.kind == "i":
            return values.astype(np.int64)
        if values.dtype.kind == "f" and bool(((values == np.floor(values)) & (np.abs(values) < 2**53)).all()):
            return values.astype(np.int64)
    except (KeyError, TypeError, ValueError, OverflowError):
        pass
    place, value = _first_bad(rows, lambda row: float(row[key]).is_integer() and abs(int(row[key])) < 2**63)
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


def _read_categories(rows: Sequence[Any], used: set[int], source: str, findings: list[Finding]) -> Categories:
    """Return the categories sorted by id, without one that merely groups all others, as Roboflow writes it."""
    if not rows:
        raise DataError(f"'{source}' lists no categories; expected at least one.")
    ids = _column(rows, source, "categories", "id").tolist()
    if len(set(ids)) != len(ids):
        raise DataError(f"'{source}': two categories share an id; expected different ids. Correct the file.")
    named = {number: str(row.get("name") or number) for number, row in zip(ids, rows, strict=True)}
    above = {number: row.get("supercategory") for number, row in zip(ids, rows, strict=True)}
    groups = [n for n in ids if above[n] in (None, "", "none", named[n])]
    dummy = next((n for n in groups if len(ids) > 1 and all(above[m] == named[n] for m in ids if m != n)), None)
    if dummy is not None and dummy not in used:
        text = f"{source}: category '{named.pop(dummy)}' has no object and only groups the others; it was left out"
        findings.append(Finding("note", "grouping-category", text))
    return tuple(sorted(named.items()))


def _read_sizes(
    images: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    image_dirs: Sequence[Path],
    source: str,
    findings: list[Finding],
) -> NDArray[np.int64]:
    """Return heights and widths; where a row has none, those of the file."""
    rows: list[Mapping[str, Any]] = list(images)
    read = 0
    for i, image in enumerate(images):
        if image.get("height") is None or image.get("width") is None:
            found = (read_file_size(folder / names[i]) for folder in image_dirs)
            size = next((size for size in found if size is not None), None)
            if size is not None:
                rows[i] = {**image, "height": size.height, "width": size.width}
                read += 1
    if read:
        text = f"{source}: {read} images have no size; it was read from their files"
        findings.append(Finding("note", "sizes-read", text, read))
    return np.stack([_column(rows, source, "images", key) for key in ("height", "width")], axis=1)


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
    areas = np.array([_area(row.get("area")) for row in rows], np.float64)
    return np.where(np.isfinite(areas), areas, boxes[:, 2] * boxes[:, 3])


def _area(value: object) -> float:
    try:
        return float(value) if isinstance(value, (int, float)) else np.nan
    except OverflowError:
        return np.nan


def _read_boxes(rows: Sequence[Any], source: str) -> NDArray[np.float64]:
    """Return ``[M, 4]`` xywh; only finite numbers pass."""
    if not rows:
        return np.zeros((0, 4), np.float64)
    try:
        boxes = np.array([row["bbox"] for row in rows], np.float64)
        if boxes.shape == (len(rows), 4) and bool((np.abs(boxes) < 1e9).all()):
            return boxes
    except (KeyError, TypeError, ValueError, OverflowError):
        pass
    place, text = _first_bad(rows, lambda row: bool((np.abs(np.array(row["bbox"], np.float64).reshape(4)) < 1e9).all()))
    raise DataError(
        f"'{source}': annotations[{place}] is {text}; expected 'bbox' with four finite numbers (x, y, width, height). "
        "Correct or remove it."
    )
