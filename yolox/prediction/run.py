"""The loop over pictures: read, predict in batches, hand out results one by one with constant memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from yolox.prediction.background import read_ahead
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


class Pictures(Protocol):
    """Pictures that are read as they are asked for; `sources.Sources` and the parts of a cluster's work are some."""

    @property
    def live(self) -> bool:
        """Whether they come from a camera or stream."""

    def __iter__(self) -> Iterator[Picture]:
        """Read one after another."""


def predict(
    predictor: Predictor,
    pictures: Pictures,
    thresholds: Thresholds,
    batch_size: int | None = None,
) -> Iterator[Result]:
    """Yield the result of each picture, in their order.

    Another thread reads, decodes and letterboxes the next two batches meanwhile. Frames of cameras and streams are
    taken one at a time, when their turn comes: others would be old by then.

    Args:
        predictor: The model.
        pictures: Read as they are needed.
        thresholds: Which boxes count.
        batch_size: Pictures that go through the network together; None takes the model's usual number.
    """
    batch_size = 1 if pictures.live else batch_size or predictor.usual_batch
    prepared: Iterator[_Prepared] = (_Prepared(picture, predictor.fit(picture.image)) for picture in pictures)
    if not pictures.live:
        prepared = read_ahead(prepared, 2 * batch_size)
    while batch := list(islice(prepared, batch_size)):
        yield from _results(predictor, batch, thresholds)


class _Prepared(NamedTuple):
    """A picture, and its image as the network reads it."""

    picture: Picture
    fitted: NDArray[np.uint8]


def _results(predictor: Predictor, batch: Sequence[_Prepared], thresholds: Thresholds) -> Iterator[Result]:
    found, elapsed_ms = predictor.detect(
        [one.fitted for one in batch],
        [Size(*one.picture.image.shape[:2]) for one in batch],
        thresholds.confidence,
        thresholds.nms_iou,
        thresholds.class_agnostic and not thresholds.multi_label,
        thresholds.multi_label,
    )
    for (picture, _), detections in zip(batch, found, strict=True):
        yield Result(
            picture=picture.image,
            size=Size(*picture.image.shape[:2]),
            boxes=named_boxes(_of_classes(detections, thresholds.classes), predictor.class_names),
            class_names=predictor.class_names,
            name=picture.name,
            path=picture.path,
            index=picture.index,
            elapsed_ms=elapsed_ms / len(batch),
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
