"""The loop over pictures: read, predict in batches, hand out results one by one with constant memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from yolox.prediction.models import Predictor
from yolox.prediction.results import Boxes, Result
from yolox.prediction.sources import Picture
from yolox.structures import Detections, Size


@dataclass(frozen=True)
class Thresholds:
    """Which boxes count.

    Args:
        confidence: Lowest score to keep.
        nms_iou: IoU above which the weaker of two boxes is dropped.
        class_agnostic: Let boxes of different classes suppress one another, as the official demo does.
        multi_label: Let a box be a detection of each class that is sure enough; takes the place of ``class_agnostic``.
        classes: Class indices to keep; None keeps all.
    """

    confidence: float = 0.25
    nms_iou: float = 0.45
    class_agnostic: bool = True
    multi_label: bool = False
    classes: tuple[int, ...] | None = None


def predict(
    predictor: Predictor, pictures: Iterable[Picture], thresholds: Thresholds, batch_size: int = 1
) -> Iterator[Result]:
    """Yield the result of each picture, in their order.

    Args:
        predictor: The model.
        pictures: Read as they are needed.
        thresholds: Which boxes count.
        batch_size: Pictures that go through the network together.
    """
    waiting: list[Picture] = []
    for picture in pictures:
        waiting.append(picture)
        if len(waiting) == batch_size:
            yield from _results(predictor, waiting, thresholds)
            waiting = []
    if waiting:
        yield from _results(predictor, waiting, thresholds)


def _results(predictor: Predictor, pictures: list[Picture], thresholds: Thresholds) -> Iterator[Result]:
    found, elapsed_ms = predictor(
        [picture.image for picture in pictures],
        thresholds.confidence,
        thresholds.nms_iou,
        thresholds.class_agnostic and not thresholds.multi_label,
        thresholds.multi_label,
    )
    for picture, detections in zip(pictures, found, strict=True):
        yield Result(
            picture=picture.image,
            size=Size(*picture.image.shape[:2]),
            boxes=named_boxes(_of_classes(detections, thresholds.classes), predictor.class_names),
            class_names=predictor.class_names,
            name=picture.name,
            path=picture.path,
            index=picture.index,
            elapsed_ms=elapsed_ms / len(pictures),
            source=picture.source,
            rate=picture.rate,
        )


def _of_classes(found: Detections, classes: tuple[int, ...] | None) -> Detections:
    if classes is None:
        return found
    kept = [row for row, label in enumerate(found.labels.tolist()) if label in classes]
    return Detections(found.boxes_xyxy[kept], found.scores[kept], found.labels[kept])


def named_boxes(found: Detections, class_names: tuple[str, ...]) -> Boxes:
    """Return detections with the names of their classes; a class without a name is called by its index."""
    names = tuple(
        class_names[label] if label < len(class_names) else f"class {label}" for label in found.labels.tolist()
    )
    return Boxes(found.boxes_xyxy, found.scores, found.labels, names)
