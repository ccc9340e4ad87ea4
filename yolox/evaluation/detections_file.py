"""The detections of an evaluation in a file, from which its figures can be drawn again."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from yolox.errors import DataError
from yolox.files import atomic_path
from yolox.structures import Detections


def write_detections(path: Path, detections: Mapping[int, Detections], epoch: int) -> None:
    """Write detections and the epoch they are of as an ``.npz`` file.

    It holds ``epoch``, ``image_ids`` [I], ``counts`` [I] detections of each image, and of all images one after another
    ``boxes_xyxy`` [N, 4] in pixels of the file, ``scores`` [N] and ``labels`` [N].
    """
    found = list(detections.values())
    with atomic_path(path) as temporary, temporary.open("wb") as handle:
        np.savez(
            handle,
            epoch=np.int64(epoch),
            image_ids=np.array(list(detections), np.int64),
            counts=np.array([len(item.scores) for item in found], np.int64),
            boxes_xyxy=np.concatenate([item.boxes_xyxy for item in found] or [np.zeros((0, 4), np.float32)]),
            scores=np.concatenate([item.scores for item in found] or [np.zeros(0, np.float32)]),
            labels=np.concatenate([item.labels for item in found] or [np.zeros(0, np.int64)]),
        )


def read_detections(path: Path) -> tuple[dict[int, Detections], int]:
    """Return the detections by image id, and their epoch.

    Raises:
        DataError: When the file is missing or is no such file.
    """
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as content:
            borders = np.cumsum(content["counts"])[:-1]
            parts = [np.split(content[name], borders) for name in ("boxes_xyxy", "scores", "labels")]
            ids, epoch = content["image_ids"].tolist(), int(content["epoch"])
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"'{path}' holds no detections ({error}); a training writes this file.") from error
    rows = zip(ids, *parts, strict=True)
    return {number: Detections(boxes, scores, labels) for number, boxes, scores, labels in rows}, epoch
