"""Which detection finds which object at IoU 0.5: precision and recall at every confidence, and the confusion matrix.

The rules are COCO's, so that all of it agrees with the AP: within an image and a class the best score chooses first, a
detection takes the free object that it overlaps most, and one that only lies in a crowd region does not count. A test
shows that the AP50 of these matches is the evaluator's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolox.evaluation.coco_metric import clean_annotations, counted_detections
from yolox.structures import Detections

IOU = 0.5
_NUM_THRESHOLDS = 1001
_NOBODY = -1


@dataclass(frozen=True)
class ImageMatches:
    """The counted detections and the objects of one image.

    Axes: D detections, best score first; G objects, crowd regions left out.

    Args:
        scores: ``[D]`` float32.
        labels: ``[D]`` class indices.
        objects: ``[D]`` the object of its own class that a detection finds, or -1.
        object_labels: ``[G]`` class indices.
        iou: ``[D, G]``, whatever the classes.
    """

    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    objects: NDArray[np.int64]
    object_labels: NDArray[np.int64]
    iou: NDArray[np.float64]


@dataclass(frozen=True)
class ScoreCurves:
    """Precision, recall and F1 of the detections whose score is at least a threshold, at IoU 0.5.

    Axes: K classes, T thresholds.

    Args:
        thresholds: ``[T]`` float32, 0, 0.001 ... 1.
        precision: ``[K, T]``; NaN where a class has no detection left.
        recall: ``[K, T]``; NaN where a class has no object.
        f1: ``[K, T]``, 2 TP / (detections + objects); NaN where a class has no object.
    """

    thresholds: NDArray[np.float32]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]

    @property
    def mean_precision(self) -> NDArray[np.float64]:
        """``[T]``, over the classes that have objects and detections."""
        return _mean_of_rows(np.where(np.isnan(self.recall), np.nan, self.precision))

    @property
    def mean_recall(self) -> NDArray[np.float64]:
        """``[T]``, over the classes that have objects."""
        return _mean_of_rows(self.recall)

    @property
    def mean_f1(self) -> NDArray[np.float64]:
        """``[T]``, over the classes that have objects."""
        return _mean_of_rows(self.f1)

    @property
    def best(self) -> int | None:
        """The position of the threshold with the highest mean F1, the lowest of equal ones; None where it is 0."""
        mean = np.nan_to_num(self.mean_f1)
        return int(mean.argmax()) if mean.any() else None


def match_objects(ground_truth: Mapping[str, Any], detections: Mapping[int, Detections]) -> list[ImageMatches]:
    """Return the matches of every image of ``ground_truth``; arguments as for `coco_metric`."""
    ids = sorted(int(category["id"]) for category in ground_truth["categories"])
    index_of = {category_id: index for index, category_id in enumerate(ids)}
    rows: dict[int, list[dict[str, Any]]] = {int(image["id"]): [] for image in ground_truth["images"]}
    for annotation in clean_annotations(ground_truth):
        rows[annotation["image_id"]].append(annotation)
    return [_match_image(own, detections.get(image_id), index_of) for image_id, own in rows.items()]


def _match_image(
    annotations: Sequence[dict[str, Any]], found: Detections | None, index_of: Mapping[int, int]
) -> ImageMatches:
    boxes = np.array([row["bbox"] for row in annotations], np.float64).reshape(-1, 4)
    labels_G = np.array([index_of[row["category_id"]] for row in annotations], np.int64)
    crowd = np.array([row["iscrowd"] for row in annotations], bool)
    if found is None or not len(found.scores):
        nothing = np.zeros(0, np.int64)
        none_found = np.zeros((0, int((~crowd).sum())))
        return ImageMatches(np.zeros(0, np.float32), nothing, nothing, labels_G[~crowd], none_found)
    kept = counted_detections(found)
    kept = kept[np.argsort(-found.scores[kept], kind="stable")]
    scores, labels = found.scores[kept], found.labels[kept]
    mine = found.boxes_xyxy[kept].astype(np.float64)
    mine[:, 2:] -= mine[:, :2]
    iou_DG, inside_DC = _overlaps(mine, boxes[~crowd])[0], _overlaps(mine, boxes[crowd])[1]
    labels_G, labels_C = labels_G[~crowd], labels_G[crowd]
    objects = _take_objects(np.where(labels[:, None] == labels_G, iou_DG, 0.0))
    ignored = ((labels[:, None] == labels_C) & (inside_DC >= IOU)).any(axis=1) & (objects == _NOBODY)
    return ImageMatches(scores[~ignored], labels[~ignored], objects[~ignored], labels_G, iou_DG[~ignored])


def _overlaps(
    first: NDArray[np.float64], second: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return IoU, and the share of the first box that lies in the second, of all pairs of ``[N, 4]`` xywh boxes."""
    corners = [np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1) for boxes in (first, second)]
    low = np.maximum(corners[0][:, None, :2], corners[1][None, :, :2])
    high = np.minimum(corners[0][:, None, 2:], corners[1][None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    areas = first[:, 2:].prod(axis=1)[:, None], second[:, 2:].prod(axis=1)[None]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nan_to_num(shared / (areas[0] + areas[1] - shared)), np.nan_to_num(shared / areas[0])


def _take_objects(iou_DG: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the object that each detection takes, in their order; of equal overlaps the last one, as COCO does."""
    objects = np.full(len(iou_DG), _NOBODY, np.int64)
    free = np.ones(iou_DG.shape[1], bool)
    for row in np.flatnonzero((iou_DG >= IOU).any(axis=1)):
        overlap = np.where(free, iou_DG[row], 0.0)
        best = overlap.max()
        if best >= IOU:
            objects[row] = np.flatnonzero(overlap == best)[-1]
            free[objects[row]] = False
    return objects


def score_curves(matches: Sequence[ImageMatches], num_classes: int) -> ScoreCurves:
    """Return precision, recall and F1 of ``num_classes`` classes against the confidence."""
    thresholds = np.linspace(0, 1, _NUM_THRESHOLDS).astype(np.float32)
    scores = np.concatenate([part.scores for part in matches] or [np.zeros(0, np.float32)])
    labels = np.concatenate([part.labels for part in matches] or [np.zeros(0, np.int64)])
    found = np.concatenate([part.objects for part in matches] or [np.zeros(0, np.int64)]) != _NOBODY
    owners = np.concatenate([part.object_labels for part in matches] or [np.zeros(0, np.int64)])
    num_objects_K1 = np.bincount(owners, minlength=num_classes)[:, None].astype(np.float64)

    def at_least(kept: NDArray[np.bool_]) -> NDArray[np.float64]:
        columns = [np.sort(scores[kept & (labels == index)]) for index in range(num_classes)]
        return np.array([len(own) - np.searchsorted(own, thresholds) for own in columns], np.float64)

    right_KT, all_KT = at_least(found), at_least(np.ones(len(found), bool))
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall = right_KT / all_KT, right_KT / num_objects_K1
        f1 = np.where(num_objects_K1 > 0, 2 * right_KT / (all_KT + num_objects_K1), np.nan)
    return ScoreCurves(thresholds, precision, recall, f1)


def confusion_matrix(matches: Sequence[ImageMatches], num_classes: int, threshold: float) -> NDArray[np.int64]:
    """Return how often an object of a class (row) was called one of a class (column), at IoU 0.5.

    The last row holds detections where nothing is labelled, the last column objects that were not found. The diagonal
    holds COCO's matches, so that diagonal / row is the recall of a class, and diagonal / column its precision. What
    they leave free is matched across classes, the largest overlaps first.

    Args:
        matches: Of all images.
        num_classes: K.
        threshold: Lowest score that counts.

    Returns:
        ``[K + 1, K + 1]``.
    """
    matrix = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    for part in matches:
        kept = part.scores >= np.float32(threshold)
        labels, objects = part.labels[kept], _with_confused(part.objects[kept], part.iou[kept])
        rows = np.where(objects == _NOBODY, num_classes, part.object_labels[objects] if len(part.object_labels) else 0)
        np.add.at(matrix, (rows, labels), 1)
        missed = np.setdiff1d(np.arange(len(part.object_labels)), objects)
        np.add.at(matrix[:, num_classes], part.object_labels[missed], 1)
    return matrix


def _with_confused(objects: NDArray[np.int64], iou_DG: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the object of each detection, those of another class included."""
    objects = objects.copy()
    free = iou_DG.copy()
    free[objects != _NOBODY] = 0.0
    free[:, objects[objects != _NOBODY]] = 0.0
    while free.size and free.max() >= IOU:
        detection, owner = np.unravel_index(free.argmax(), free.shape)
        objects[detection] = owner
        free[detection], free[:, owner] = 0.0, 0.0
    return objects


def _mean_of_rows(values_KT: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of the rows that are no NaN, NaN where all are."""
    defined = ~np.isnan(values_KT)
    counts = defined.sum(axis=0)
    sums = np.where(defined, values_KT, 0.0).sum(axis=0)
    return np.where(counts > 0, sums / np.maximum(counts, 1), math.nan)
