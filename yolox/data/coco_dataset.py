"""An index of a detection data set in COCO's form, held in a handful of arrays: a few hundred bytes per image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolox.data.formats.description import Categories, Finding
from yolox.structures import Size


@dataclass(frozen=True, eq=False)
class CocoDataset:
    """Images and labelled objects of one split; ``formats.checks.check_split`` builds it.

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
        findings: What was repaired, left out or looks wrong.
        own_categories: ``(id, name)`` of the label file, where ``categories`` are those of a model or another split.
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
    findings: tuple[Finding, ...] = ()
    own_categories: Categories = ()

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in the order of the class indices."""
        return tuple(name for _, name in self.categories)

    @property
    def category_ids(self) -> tuple[int | None, ...]:
        """The ids that the label file gives the classes, in the order of their indices; None for one it lacks."""
        own = {name: number for number, name in self.own_categories or self.categories}
        return tuple(own.get(name) for name in self.class_names)

    def owners(self) -> NDArray[np.int64]:
        """Return ``[M]``, the index of the image that each object is in."""
        return np.repeat(np.arange(len(self)), np.diff(self.object_ends))

    @property
    def nbytes(self) -> int:
        """Memory that the index holds."""
        arrays = (self.image_ids, self.sizes, self.name_ends, self.object_ends)
        arrays_m = (self.boxes_xywh, self.areas, self.labels, self.crowd)
        return len(self.names) + sum(array.nbytes for array in (*arrays, *arrays_m))

    def file_name(self, index: int) -> str:
        """Return the file name of an image as the data set gives it."""
        start, end = self.name_ends[index], self.name_ends[index + 1]
        return self.names[start:end].decode("utf-8", "surrogatepass")

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
        boxes = clipped_xyxy(self.boxes_xywh[start:end][wanted], self.sizes[index][None])
        return boxes.astype(np.float32), self.labels[start:end][wanted].astype(np.int64)

    def labelled(self) -> NDArray[np.int64]:
        """Return the indices of the images that have at least one object to learn."""
        running = np.concatenate([[0], np.cumsum(~self.crowd)])
        return np.flatnonzero(running[self.object_ends[1:]] > running[self.object_ends[:-1]])

    def subset(self, indices: NDArray[np.int64]) -> CocoDataset:
        """Return the index of some of the images, in the given order."""
        objects = np.concatenate(
            [np.arange(self.object_ends[i], self.object_ends[i + 1]) for i in indices] or [np.zeros(0, np.int64)]
        )
        encoded = [self.names[self.name_ends[i] : self.name_ends[i + 1]] for i in indices]
        return replace(
            self,
            image_ids=self.image_ids[indices],
            sizes=self.sizes[indices],
            names=b"".join(encoded),
            name_ends=ends([len(name) for name in encoded]),
            object_ends=ends(np.diff(self.object_ends)[indices]),
            boxes_xywh=self.boxes_xywh[objects],
            areas=self.areas[objects],
            labels=self.labels[objects],
            crowd=self.crowd[objects],
        )

    def ground_truth_json(self) -> dict[str, Any]:
        """Return the split as a COCO dict for faster-coco-eval or pycocotools."""
        images = [
            {"id": int(number), "file_name": self.file_name(i), "height": int(height), "width": int(width)}
            for i, (number, (height, width)) in enumerate(zip(self.image_ids, self.sizes, strict=True))
        ]
        owners = self.image_ids[self.owners()]
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


def clipped_xyxy(boxes_xywh: NDArray[np.float64], sizes: NDArray[Any]) -> NDArray[np.float64]:
    """Return boxes given as xywh as xyxy within their images, ``sizes`` being height and width."""
    limits = np.concatenate([sizes[:, ::-1], sizes[:, ::-1]], axis=1)
    boxes = np.concatenate([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], axis=1)
    return np.asarray(np.clip(boxes, 0, limits), np.float64)


def ends(lengths: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where each of consecutive parts starts, and the end of the last."""
    return np.concatenate([[0], np.cumsum(np.asarray(lengths, np.int64))]).astype(np.int64)
