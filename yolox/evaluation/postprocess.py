"""From decoded predictions to final detections: confidence filter, non-maximum suppression, original pixels.

NumPy and OpenCV only: a deployed model uses this file on machines without PyTorch.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from yolox.data.image_ops import fit_ratio
from yolox.errors import UsageError
from yolox.structures import Detections, Size

LARGEST_COORDINATE = 1e7
"""Boxes beyond this many pixels come from a diverged network; they would exhaust the precision of class offsets."""


def nms_xyxy(
    boxes_xyxy: NDArray[np.float32], scores: NDArray[np.float32], labels: NDArray[np.int64] | None, iou_threshold: float
) -> NDArray[np.int64]:
    """Return the indices of the boxes that greedy non-maximum suppression keeps, best score first.

    A box goes when its IoU with a better kept box exceeds the threshold (equality stays; no pixel is added to widths).

    Args:
        boxes_xyxy: ``[N, 4]`` finite boxes of positive area.
        scores: ``[N]``, above zero; equal scores keep the order of the input.
        labels: ``[N]`` classes, which do not suppress one another; None lets all boxes compete.
        iou_threshold: From 0 to 1.
    """
    if len(boxes_xyxy) == 0:
        return np.zeros(0, np.int64)
    # float64 holds the differences of float32 corners, so OpenCV's width-and-height form loses nothing
    boxes_xywh = boxes_xyxy.astype(np.float64)
    boxes_xywh[:, 2:] -= boxes_xywh[:, :2]
    boxes: Any = boxes_xywh  # OpenCV's annotations ask for lists; arrays are read without a copy in Python
    values: Any = scores
    if labels is None:
        kept = cv2.dnn.NMSBoxes(boxes, values, 0.0, iou_threshold)
    else:
        classes: Any = labels.astype(np.int32)
        kept = cv2.dnn.NMSBoxesBatched(boxes, values, classes, 0.0, iou_threshold)
    return np.asarray(kept, dtype=np.int64)


def postprocess(
    boxes_xyxy: ArrayLike,
    scores: ArrayLike,
    *,
    confidence: float,
    nms_iou: float,
    class_agnostic: bool = False,
    multi_label: bool = False,
) -> list[Detections]:
    """Return the detections of every image of a batch, in pixels of the network's input.

    Each box takes its best class, or every class that is sure enough (``multi_label``); boxes that are not finite,
    have no area or score 0 are no detections.

    Args:
        boxes_xyxy: ``[B, A, 4]``, arrays or CPU tensors.
        scores: ``[B, A, C]``, objectness times class probability.
        confidence: Lowest score to keep.
        nms_iou: Boxes overlapping a better one by more than this are dropped.
        class_agnostic: Let boxes of different classes suppress one another, as the official demo does.
        multi_label: Let a box be a detection of each of its classes whose score is high enough, as the official ONNX
            Runtime demo does; classes then never suppress one another.

    Raises:
        UsageError: When a threshold lies outside 0...1, the shapes do not belong together, or ``class_agnostic`` and
            ``multi_label`` are asked for together: the classes of one box would suppress one another.
    """
    for name, value in (("confidence", confidence), ("nms_iou", nms_iou)):
        if not 0.0 <= value <= 1.0:
            raise UsageError(f"{name} got {value}, expected a value from 0 to 1.")
    if class_agnostic and multi_label:
        raise UsageError("class_agnostic and multi_label were both given; expected one of them. Leave one out.")
    boxes_BA4 = np.asarray(boxes_xyxy, dtype=np.float32)
    scores_BAC = np.asarray(scores, dtype=np.float32)
    if boxes_BA4.ndim != 3 or boxes_BA4.shape[2] != 4 or boxes_BA4.shape[:2] != scores_BAC.shape[:2]:
        raise UsageError(
            f"boxes of shape {boxes_BA4.shape} and scores of shape {scores_BAC.shape}; "
            "expected [B, A, 4] and [B, A, C]. Pass a whole batch of decoded predictions."
        )
    return [
        _postprocess_image(boxes_A4, scores_AC, confidence, nms_iou, class_agnostic, multi_label)
        for boxes_A4, scores_AC in zip(boxes_BA4, scores_BAC, strict=True)
    ]


def _postprocess_image(
    boxes_A4: NDArray[np.float32],
    scores_AC: NDArray[np.float32],
    confidence: float,
    nms_iou: float,
    class_agnostic: bool,
    multi_label: bool,
) -> Detections:
    candidates, labels = _candidates(scores_AC, confidence, multi_label)
    boxes, best = boxes_A4[candidates], scores_AC[candidates, labels]
    with np.errstate(invalid="ignore", over="ignore"):
        usable = (np.abs(boxes) < LARGEST_COORDINATE).all(axis=1) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    if not usable.all():
        boxes, best, labels = boxes[usable], best[usable], labels[usable]
    kept = nms_xyxy(boxes, best, None if class_agnostic else labels, nms_iou)
    return Detections(boxes_xyxy=boxes[kept], scores=best[kept], labels=labels[kept])


def _candidates(
    scores_AC: NDArray[np.float32], confidence: float, multi_label: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return anchor point and class of every score that counts."""
    if multi_label:
        candidates, labels = np.nonzero((scores_AC >= np.float32(confidence)) & (scores_AC > 0))
        return candidates, labels
    best_A = scores_AC.max(axis=1)
    candidates = np.flatnonzero((best_A >= np.float32(confidence)) & (best_A > 0))
    return candidates, scores_AC[candidates].argmax(axis=1)


def rescale(detections: Detections, original_size: Size, input_size: Size) -> Detections:
    """Return the detections in pixels of the original image (not clipped to it, as in official evaluation).

    Args:
        detections: In pixels of a letterboxed input with the image at the top left.
        original_size: Size of the image file.
        input_size: Size of the network's input.
    """
    ratio = np.float32(fit_ratio(original_size, input_size))
    return Detections(detections.boxes_xyxy / ratio, detections.scores, detections.labels)
