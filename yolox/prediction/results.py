"""What a prediction gives: boxes of one image, and how to draw, write and hand them on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolox.errors import DataError, YoloxError, needs
from yolox.structures import Detections, Image, Size


@dataclass(frozen=True)
class Boxes:
    """The objects found in one image, best score first.

    Args:
        xyxy: ``[N, 4]`` float32: left, top, right, bottom in pixels of the image; boxes may reach beyond it.
        scores: ``[N]`` float32, objectness times class probability.
        labels: ``[N]`` int64 class indices.
        names: Name of each object's class, N of them.
        track_ids: ``[N]`` int64 in tracked videos, -1 for an object that is not followed yet; otherwise None.
    """

    xyxy: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    track_ids: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def xywh(self) -> NDArray[np.float32]:
        """``[N, 4]``: left, top, width, height, as COCO writes boxes."""
        return np.concatenate((self.xyxy[:, :2], self.xyxy[:, 2:] - self.xyxy[:, :2]), axis=1)

    @property
    def captions(self) -> tuple[str, ...]:
        """Name and, where there is one, track of each object."""
        if self.track_ids is None:
            return self.names
        pairs = zip(self.names, self.track_ids.tolist(), strict=True)
        return tuple(f"{name} #{track}" if track >= 0 else name for name, track in pairs)


@dataclass(frozen=True)
class Result:
    """The detections of one image.

    Args:
        picture: The image ``[H, W, 3]`` uint8 BGR, as it was read, or a function that reads it again (on a cluster).
        size: Its height and width.
        boxes: What was found in it.
        class_names: All classes that the model knows.
        name: What to call the image: the file's path relative to the folder that was asked for, or ``film_000012.jpg``.
        path: The file, or None for a picture that is none (an array, a camera).
        index: Number of the image in its source, from 0.
        elapsed_ms: Milliseconds that network and suppression took for this image.
        source: The video, stream or camera that the image comes from, or None.
        rate: Frames a second of that video, or None.
    """

    picture: Image | Callable[[], Image | None] = field(repr=False)  # pages of numbers
    size: Size
    boxes: Boxes
    class_names: tuple[str, ...] = field(repr=False)
    name: str
    path: Path | None = None
    index: int = 0
    elapsed_ms: float = 0.0
    source: str | None = None
    rate: float | None = None

    @cached_property
    def image(self) -> Image:
        """The image, ``[H, W, 3]`` uint8 BGR.

        Raises:
            DataError: When it has to be read again and cannot be.
        """
        image = self.picture() if callable(self.picture) else self.picture
        if image is None:
            raise DataError(f"'{self.path or self.name}' cannot be read on this machine, which needs its pixels.")
        return image

    @property
    def detections(self) -> Detections:
        """The boxes as the other parts of this package pass them."""
        return Detections(self.boxes.xyxy, self.boxes.scores, self.boxes.labels)

    def with_tracks(self, track_ids: NDArray[np.int64]) -> Result:
        """Return the result with the track of each box."""
        return replace(self, boxes=replace(self.boxes, track_ids=track_ids))

    def plot(self) -> Image:
        """Return a copy of the image with boxes, names and scores drawn in."""
        from yolox.visualize import draw_detections

        return draw_detections(self.image, self.detections, self.class_names, captions=self.boxes.captions)

    def save(self, path: str | Path) -> Path:
        """Write the picture of `plot` and return its path.

        Raises:
            YoloxError: When the ending names no format, or the place cannot be written.
            UsageError: When the file is an input of this command.
        """
        from yolox.files import atomic_path, make_output_dir

        target = Path(path)
        data = encode_image(self.plot(), target)
        make_output_dir(target.parent)
        with atomic_path(target) as temporary:
            temporary.write_bytes(data)
        return target

    def crops(self) -> Iterator[tuple[str, Image]]:
        """Yield the class name and the pixels of each object that covers at least one pixel."""
        limits = np.array([self.size.width, self.size.height] * 2)
        for name, box in zip(self.boxes.names, self.boxes.xyxy, strict=True):
            left, top, right, bottom = (int(edge) for edge in np.clip(np.round(box), 0, limits))
            if right > left and bottom > top:
                yield name, self.image[top:bottom, left:right]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values (for JSON): image, size, milliseconds, and ``objects``: box, score, label and name."""
        objects = []
        for row in range(len(self.boxes)):
            found: dict[str, Any] = {
                "name": self.boxes.names[row],
                "label": int(self.boxes.labels[row]),
                "score": float(self.boxes.scores[row]),
                "box_xyxy": [float(edge) for edge in self.boxes.xyxy[row]],
            }
            if self.boxes.track_ids is not None:
                found["track_id"] = int(self.boxes.track_ids[row])
            objects.append(found)
        return {
            "image": self.name,
            "index": self.index,
            "height": self.size.height,
            "width": self.size.width,
            "elapsed_ms": self.elapsed_ms,
            "objects": objects,
        }

    def to_coco(self, image_id: int, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Return COCO result rows: ``image_id``, ``category_id``, ``bbox`` (left, top, width, height), ``score``.

        Args:
            image_id: The id of this image in the annotation file.
            category_ids: Category of each class index; by default 1, 2, 3, ...
        """
        from yolox.evaluation.coco_metric import coco_rows

        return list(coco_rows(self.detections, image_id, category_ids or range(1, len(self.class_names) + 1)))

    def to_supervision(self) -> Any:
        """Return the boxes as ``supervision.Detections``.

        Raises:
            MissingDependencyError: When supervision is not installed.
        """
        with needs("supervision", "pip install 'yolox-cpu[track]'"):
            import supervision
        return supervision.Detections(
            xyxy=self.boxes.xyxy.reshape(-1, 4),
            confidence=self.boxes.scores,
            class_id=self.boxes.labels.astype(int),
            tracker_id=self.boxes.track_ids,
            data={"class_name": np.array(self.boxes.names, dtype=str)},
        )


def encode_image(image: Image, path: Path) -> bytes:
    """Return the image in the format that the ending of ``path`` names.

    Raises:
        YoloxError: When OpenCV does not know that format.
    """
    import cv2

    try:
        done, data = cv2.imencode(path.suffix or ".?", image)
    except cv2.error:
        done, data = False, None
    if not done or data is None:
        raise YoloxError(f"cannot encode '{path}' as '{path.suffix}'. Choose a name that ends in .jpg or .png.")
    return bytes(data.tobytes())
