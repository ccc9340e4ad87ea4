"""The checks that labels of every form pass on their way into the index: repaired with a count, or refused."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolox.class_names import clean_name
from yolox.data.coco_dataset import CocoDataset, clipped_xyxy, ends
from yolox.data.formats.description import Categories, Finding, SplitDescription, examples, findings_about
from yolox.errors import DataError

_LOG = logging.getLogger(__name__)
MAX_CLASSES = 20_000
"""More are refused: the largest public set has 13,204, and scores of one image already take 700 MB there."""
_MAX_SIDE = 1 << 20
_SUSPICIOUS = 0.5  # share of boxes beyond their image at which corners are suspected in place of sizes
_BACKGROUND = ("_background_", "__background__", "__ignore__")


def check_split(found: SplitDescription, categories: Categories | None = None) -> CocoDataset:
    """Return the index of a split: names merged, rows deduplicated, boxes within their images, findings logged.

    Args:
        found: What a reader found; its ``findings`` are extended.
        categories: Categories of the training split or model, whose order gives the class indices; by default its own.

    Raises:
        DataError: For labels that cannot be meant: no image, sizes or ids out of range, boxes relative to the image,
            a class that ``categories`` lack.
    """
    check_images(found.image_ids, found.sizes, found.source)
    _merge_classes_(found)
    _refuse_relative_boxes(found)
    keep = _without_repetitions(found) & _inside(found)
    if categories is not None:
        found.labels = _relabel(found.labels, found.categories, categories, found.source)
    order = np.flatnonzero(keep)[np.argsort(found.owners[keep], kind="stable")]
    encoded = [name.encode("utf-8", "surrogatepass") for name in found.names]
    for finding in found.findings:
        if finding.code == "missing-images":  # named when they are read
            continue
        _LOG.log(logging.INFO if finding.severity == "note" else logging.WARNING, "%s", finding)
    return CocoDataset(
        source=found.source,
        image_dir=found.image_dir,
        categories=categories or found.categories,
        image_ids=found.image_ids,
        sizes=found.sizes.astype(np.int32),
        names=b"".join(encoded),
        name_ends=ends([len(name) for name in encoded]),
        object_ends=ends(np.bincount(found.owners[order], minlength=len(found.image_ids))),
        boxes_xywh=found.boxes_xywh[order],
        areas=found.areas[order],
        labels=found.labels[order].astype(np.int32),
        crowd=found.crowd[order],
        findings=tuple(found.findings),
        own_categories=found.categories,
    )


def check_images(ids: NDArray[np.int64], sizes: NDArray[Any], source: str) -> None:
    """Refuse a split without images, repeated ids, and sizes (``[N, 2]``) that no image has.

    Raises:
        DataError: When there is one.
    """
    if not len(ids):
        raise DataError(f"'{source}' lists no images; expected at least one.")
    unique, counts = np.unique(ids, return_counts=True)
    if len(unique) != len(ids):
        raise DataError(f"'{source}': image id {unique[counts > 1][0]} occurs twice; expected different ids.")
    odd = np.flatnonzero((sizes.min(axis=1) <= 0) | (sizes.max(axis=1) > _MAX_SIDE))
    if len(odd):
        raise DataError(
            f"'{source}': image id {ids[odd[0]]} has height x width {sizes[odd[0]]}; expected > 0 and at most "
            f"{_MAX_SIDE}. Correct the file."
        )


def _merge_classes_(found: SplitDescription) -> None:
    """Give classes of one name one index, and leave out those that only group or fill."""
    if not found.categories:
        raise DataError(f"'{found.source}' lists no categories; expected at least one.")
    if len(found.categories) > MAX_CLASSES:
        raise DataError(
            f"'{found.source}' names {len(found.categories)} classes; expected at most {MAX_CLASSES}. "
            "Is a count or an id in the place of a name?"
        )
    names = [clean_name(name) for _, name in found.categories]
    odd = [name for name, (_, given) in zip(names, found.categories, strict=True) if name != given]
    text = f"{found.source}: {len(odd)} class names held control characters or outer spaces"
    found.findings += findings_about(odd, "warning", "class-names", text)
    used = np.bincount(found.labels, minlength=len(names))
    first = {name: i for i, name in reversed(list(enumerate(names)))}
    repeated = [name for i, name in enumerate(names) if first[name] != i]
    text = f"{found.source}: {len(repeated)} classes have the same name as another and were merged with it"
    found.findings += findings_about(repeated, "warning", "equal-class-names", text)
    fillers = [i for i in first.values() if names[i].casefold() in _BACKGROUND and not used[i] and len(first) > 1]
    text = f"{found.source}: {len(fillers)} classes stand for the background, have no object and were left out"
    found.findings += findings_about([names[i] for i in fillers], "note", "background-class", text)
    kept = sorted(set(first.values()) - set(fillers))
    place = {old: new for new, old in enumerate(kept)}
    table = np.array([place.get(first[name], -1) for name in names], np.int64)
    found.labels = table[found.labels]
    found.categories = tuple((found.categories[i][0], names[i]) for i in kept)


def _refuse_relative_boxes(found: SplitDescription) -> None:
    boxes, sizes = found.boxes_xywh, found.sizes[found.owners]
    if len(boxes) and float(boxes.max()) <= 1.0 and int(sizes.min()) > 2:
        raise DataError(
            f"'{found.source}': all {len(boxes)} boxes lie between 0 and 1 (the first: {boxes[0].tolist()}); expected "
            "pixels. Multiply them by the width and height of their image."
        )


def _without_repetitions(found: SplitDescription) -> NDArray[np.bool_]:
    """Return which rows come first among equal ones (same image, class and box); crowd regions are left alone."""
    keep = np.ones(len(found.owners), np.bool_)
    if not len(keep):
        return keep
    columns = (*found.boxes_xywh.T, found.labels, found.owners)
    order = np.lexsort(columns)
    same = np.logical_and.reduce([np.diff(column[order]) == 0 for column in columns])
    keep[order[1:][same & ~found.crowd[order[1:]]]] = False
    repeated = np.flatnonzero(~keep)
    text = f"{found.source}: {len(repeated)} of {len(keep)} boxes repeat another row and were dropped"
    images = [found.names[i] for i in found.owners[repeated]]
    found.findings += findings_about(images, "warning", "repeated-boxes", text)
    return keep


def _inside(found: SplitDescription) -> NDArray[np.bool_]:
    """Return which objects have any area inside their image; say how many have not, or reach beyond it."""
    boxes, crowd, sizes = found.boxes_xywh, found.crowd, found.sizes[found.owners]
    inside = clipped_xyxy(boxes, sizes)
    whole = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    keep = crowd | ((inside[:, 2] > inside[:, 0]) & (inside[:, 3] > inside[:, 1]))
    beyond = np.abs(inside - whole).max(axis=1, initial=0.0) > 1  # labels rounded to the border are no fault
    num_clipped, num_dropped = int((beyond & keep).sum()), int((~keep).sum())
    if num_clipped or num_dropped:
        text = (
            f"{found.source}: of {len(boxes)} boxes, {num_clipped} reach beyond their image and were clipped, "
            f"{num_dropped} have no area inside it and were dropped"
        )
        at = np.flatnonzero(~keep if num_dropped else beyond)
        shown = examples([found.names[i] for i in found.owners[at]])
        found.findings.append(Finding("warning", "boxes-outside", text, num_clipped + num_dropped, shown))
    corners = (boxes[:, 2:] > boxes[:, :2]).all(axis=1) & (boxes[:, 2:] <= sizes[:, ::-1] + 1).all(axis=1)
    if len(boxes) and beyond.mean() > _SUSPICIOUS and corners.all():
        text = (
            f"{found.source}: {int(beyond.sum())} of {len(boxes)} boxes reach beyond their image, and all would fit as "
            "left, top, right, bottom; expected left, top, width, height"
        )
        found.findings.append(Finding("error", "boxes-as-corners", text, int(beyond.sum())))
    return keep


def _relabel(labels: NDArray[np.int64], own: Categories, wanted: Categories, source: str) -> NDArray[np.int64]:
    """Return the labels as indices into the training split's categories, matched by name."""
    index = {name: i for i, (_, name) in enumerate(wanted)}
    used = set(np.unique(labels).tolist())
    unknown = [name for i, (_, name) in enumerate(own) if i in used and name not in index]
    if unknown:
        raise DataError(
            f"'{source}' uses category '{unknown[0]}', which the training labels lack "
            f"(they have {', '.join(list(index)[:8])}). Give both splits the same categories."
        )
    return np.array([index.get(name, -1) for _, name in own], np.int64)[labels]


def as_arrays(rows: Sequence[tuple[int, int, Sequence[float]]]) -> dict[str, Any]:
    """Return rows (position of the image, class index, xywh) as the object columns of a ``SplitDescription``."""
    boxes = np.array([box for _, _, box in rows], np.float64).reshape(-1, 4)
    return {
        "owners": np.array([owner for owner, _, _ in rows], np.int64),
        "labels": np.array([label for _, label, _ in rows], np.int64),
        "boxes_xywh": boxes,
        "areas": boxes[:, 2] * boxes[:, 3],
        "crowd": np.zeros(len(rows), np.bool_),
    }
