"""COCO average precision of a whole data set, by faster-coco-eval (equal to pycocotools, proved by a test)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolox.errors import DataError
from yolox.structures import Detections

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""The twelve numbers of COCO, in their order."""

MAX_PER_CLASS = 100
"""COCO looks at the best hundred detections of a class in an image; the others change nothing."""
_IOU_50 = 0  # the first of COCO's ten thresholds


@dataclass(frozen=True)
class ClassResult:
    """AP, AP50 and AR (at 100 detections) of one class, 0...1, NaN when no object of the class is labelled."""

    name: str
    ap: float
    ap50: float
    ar: float
    num_objects: int


@dataclass(frozen=True)
class CocoResult:
    """The answer of COCO evaluation.

    Args:
        metrics: ``METRICS`` to values 0...1, NaN where no object counts (no labels at all, or none of that size).
        per_class: In the order of the category ids.
        num_images: Images of the data set.
        num_objects: Labelled objects, crowds left out.
        num_detections: Detections given.
        precision50: ``[K, 101]``, for each class its precision at IoU 0.5 and recalls 0, 0.01 ... 1, made to fall
            as COCO does; the mean of a row is the AP50 of the class. NaN where no object of the class is labelled.
    """

    metrics: Mapping[str, float]
    per_class: tuple[ClassResult, ...]
    num_images: int
    num_objects: int
    num_detections: int
    precision50: NDArray[np.float64]

    @property
    def has_labels(self) -> bool:
        """Whether anything could be measured."""
        return self.num_objects > 0


def coco_metric(ground_truth: Mapping[str, Any], detections: Mapping[int, Detections]) -> CocoResult:
    """Return COCO AP and AR of ``detections`` on all images of ``ground_truth``.

    Args:
        ground_truth: ``images``, ``annotations`` (``bbox`` is left, top, width, height) and ``categories`` as in a COCO
            file; label k of a detection means the k-th category id in ascending order. ``area`` and ``iscrowd`` may
            be missing.
        detections: By image id, boxes in pixels of the image; images without an entry have none.

    Raises:
        DataError: When a detection is of an image or a class that the ground truth lacks.
    """
    categories = sorted(ground_truth["categories"], key=lambda category: int(category["id"]))
    category_ids = [int(category["id"]) for category in categories]
    image_ids = {int(image["id"]) for image in ground_truth["images"]}
    _check_detections(detections, image_ids, len(category_ids))
    annotations = clean_annotations(ground_truth)
    results = list(coco_results(detections, category_ids))
    truth = {
        "images": [{"id": image_id} for image_id in sorted(image_ids)],
        "categories": [{"id": category_id} for category_id in category_ids],
        "annotations": annotations,
    }
    metrics, precision_TRKAM, recall_TKAM = _evaluate(truth, results)
    counts = np.zeros(len(category_ids), np.int64)
    index_of = {category_id: index for index, category_id in enumerate(category_ids)}
    for annotation in annotations:
        counts[index_of[annotation["category_id"]]] += not annotation["iscrowd"]
    per_class = tuple(
        ClassResult(
            name=str(category.get("name", category["id"])),
            ap=_mean_of_defined(precision_TRKAM[:, :, index, 0, -1]),
            ap50=_mean_of_defined(precision_TRKAM[_IOU_50, :, index, 0, -1]),
            ar=_mean_of_defined(recall_TKAM[:, index, 0, -1]),
            num_objects=int(counts[index]),
        )
        for index, category in enumerate(categories)
    )
    num_detections = sum(len(found.scores) for found in detections.values())
    precision50_KR = precision_TRKAM[_IOU_50, :, :, 0, -1].T
    precision50_KR = np.where(precision50_KR > -1, precision50_KR, np.nan)
    return CocoResult(metrics, per_class, len(image_ids), int(counts.sum()), num_detections, precision50_KR)


def _check_detections(detections: Mapping[int, Detections], image_ids: set[int], num_classes: int) -> None:
    strangers = sorted(set(detections) - image_ids)
    if strangers:
        raise DataError(
            f"{len(strangers)} images with detections are not in the annotation file (first id {strangers[0]}). "
            "Evaluate on the images that the file lists."
        )
    highest = max((int(found.labels.max()) for found in detections.values() if len(found.labels)), default=-1)
    if highest >= num_classes:
        raise DataError(
            f"a detection has class index {highest}, the data set has {num_classes} classes. "
            "Evaluate with a model that was trained on these classes."
        )


def clean_annotations(ground_truth: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return annotations with what COCO needs and new ids from 1, because COCO reads id 0 as 'unmatched'."""
    cleaned = []
    for number, annotation in enumerate(ground_truth.get("annotations", ()), start=1):
        box = [float(value) for value in annotation["bbox"]]
        cleaned.append(
            {
                "id": number,
                "image_id": int(annotation["image_id"]),
                "category_id": int(annotation["category_id"]),
                "bbox": box,
                "area": float(annotation.get("area", box[2] * box[3])),
                "iscrowd": int(annotation.get("iscrowd", 0)),
            }
        )
    return cleaned


def coco_results(detections: Mapping[int, Detections], category_ids: Sequence[int | None]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a COCO results file, whose ``bbox`` is left, top, width, height.

    Args:
        detections: By image id, boxes in pixels of the image.
        category_ids: The category id of each class index, as the rows have it.
    """
    for image_id, found in detections.items():
        kept = counted_detections(found)
        best = Detections(found.boxes_xyxy[kept], found.scores[kept], found.labels[kept])
        yield from coco_rows(best, image_id, category_ids)


def coco_rows(found: Detections, image_id: int, category_ids: Sequence[int | None]) -> Iterator[dict[str, Any]]:
    """Yield the rows of one image; as `coco_results`, but of all its detections."""
    boxes = found.boxes_xyxy.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    for box, score, label in zip(boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True):
        yield {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}


def counted_detections(found: Detections) -> NDArray[np.int64]:
    """Return the indices of the detections that COCO looks at, to spare the memory of the others."""
    if len(found.scores) <= MAX_PER_CLASS:
        return np.arange(len(found.scores))
    order = np.lexsort((-found.scores, found.labels))
    labels = found.labels[order]
    rank = np.arange(len(labels)) - np.searchsorted(labels, labels)
    return np.sort(order[rank < MAX_PER_CLASS])


def _evaluate(
    truth: dict[str, Any], results: list[dict[str, Any]]
) -> tuple[dict[str, float], NDArray[np.float64], NDArray[np.float64]]:
    """Run COCO evaluation; return the twelve numbers, precision [T, R, K, area, dets] and recall [T, K, area, dets]."""
    from faster_coco_eval import COCO, COCOeval_faster

    reference = COCO(truth, print_function=_silent)
    evaluation = COCOeval_faster(reference, reference.loadRes(results), "bbox", print_function=_silent)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    values = [float(value) for value in evaluation.stats[: len(METRICS)]]
    stats = {name: (value if value >= 0 else math.nan) for name, value in zip(METRICS, values, strict=True)}
    return stats, np.asarray(evaluation.eval["precision"]), np.asarray(evaluation.eval["recall"])


def _silent(*_: object) -> None:
    """Take the place of the library's printing."""


def _mean_of_defined(values: NDArray[np.float64]) -> float:
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else math.nan
