"""Images with boxes for a report: training samples as the network sees them, and predictions beside the truth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from yolox.data.coco_dataset import CocoDataset
from yolox.data.image_ops import fit_ratio
from yolox.data.image_source import ImageSource
from yolox.structures import Batch, Detections, Image, Size
from yolox.visualize import draw_detections

_CELL = Size(400, 576)
_QUALITY = 85


@dataclass(frozen=True)
class Pair:
    """An image of the evaluation, twice: with its labels and with what was found, and its file name."""

    name: str
    truth: Image
    found: Image


def jpeg_of(image: Image) -> bytes:
    """Return an image as a JPEG file."""
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes()


def training_pictures(batch: Batch, class_names: Sequence[str]) -> list[Image]:
    """Return the images of a batch with their boxes, after augmentation; small ones are enlarged."""
    pictures = []
    for image, boxes, labels, valid in zip(batch.images, *batch.targets, strict=True):
        pixels = np.ascontiguousarray(image.numpy().transpose(1, 2, 0))
        factor = max(1, round(_CELL.height / len(pixels)))  # captions would hide small images
        pixels = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
        centre_and_size = boxes[valid].numpy() * factor
        centre, half = centre_and_size[:, :2], centre_and_size[:, 2:] / 2
        corners = np.concatenate([centre - half, centre + half], axis=1)
        pictures.append(_with_labels(pixels, corners, labels[valid].numpy(), class_names))
    return pictures


def _with_labels(
    image: Image, boxes_xyxy: NDArray[np.float32], labels: NDArray[np.int64], class_names: Sequence[str]
) -> Image:
    labelled = Detections(boxes_xyxy, np.ones(len(labels), np.float32), labels)
    return draw_detections(image, labelled, class_names, show_scores=False)


def prediction_pairs(
    data: CocoDataset, detections: Mapping[int, Detections], threshold: float, count: int
) -> Iterator[Pair]:
    """Yield images from all over the data set with their labels and their detections.

    Args:
        data: The images; unreadable ones are left out.
        detections: By image id, in pixels of the file.
        threshold: Lowest score to draw.
        count: How many images at most.
    """
    source = ImageSource(data, _CELL)
    labelled = data.labelled()
    chosen = labelled if len(labelled) >= count else np.arange(len(data))
    for place in np.unique(np.linspace(0, len(chosen) - 1, min(count, len(chosen))).astype(int)):
        index = int(chosen[place])
        sample = source.sample(index)
        found = detections.get(int(data.image_ids[index]))
        if sample is None or found is None:
            continue
        ratio = np.float32(fit_ratio(data.size(index), _CELL))
        scaled = replace(found, boxes_xyxy=found.boxes_xyxy * ratio)
        yield Pair(
            data.file_name(index),
            _with_labels(sample.image, sample.boxes_xyxy, sample.labels, data.class_names),
            draw_detections(sample.image, scaled, data.class_names, lowest_score=threshold),
        )
