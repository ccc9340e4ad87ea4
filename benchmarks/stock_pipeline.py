"""The straightforward OpenCV pipeline in the style of official YOLOX: the stock side of ``data_pipeline``.

Written anew from its description: every image is decoded and resized for every sample, four are pasted onto a canvas
twice as large, the canvas is warped, MixUp blends in floating point, and the network gets contiguous float32.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
FILL = 114


class StockPipeline:
    """Makes training samples of a data set in COCO's form.

    Args:
        folder: The data set.
        side: Side of the network's input.
        scales: Range of the scale after a mosaic.
        seed: Seed of its generator.
    """

    def __init__(self, folder: Path, side: int, scales: tuple[float, float], seed: int = 0) -> None:
        content = json.loads((folder / "annotations" / "instances_train2017.json").read_text(encoding="utf-8"))
        self.side, self.scales = side, scales
        self.paths = [folder / "train2017" / image["file_name"] for image in content["images"]]
        self.labels: list[Array] = []
        for image in content["images"]:
            own = [item for item in content["annotations"] if item["image_id"] == image["id"]]
            rows = [[*item["bbox"], item["category_id"] - 1] for item in own]
            boxes = np.array(rows, np.float64).reshape(-1, 5)
            boxes[:, 2:4] += boxes[:, :2]
            self.labels.append(boxes)
        self.rng = np.random.default_rng(seed)

    def read(self, index: int) -> tuple[Array, Array]:
        """Return an image fitted to the input size, and its boxes (xyxy, class)."""
        image = cv2.imread(str(self.paths[index]))
        assert image is not None
        ratio = min(self.side / image.shape[0], self.side / image.shape[1])
        size = (int(image.shape[1] * ratio), int(image.shape[0] * ratio))
        resized = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
        labels = self.labels[index].copy()
        labels[:, :4] *= ratio
        return resized, labels

    def letterbox(self, image: Array, labels: Array) -> tuple[Array, Array]:
        """Return the padded float32 image in planes, and centre boxes."""
        ratio = min(self.side / image.shape[0], self.side / image.shape[1])
        size = (int(image.shape[1] * ratio), int(image.shape[0] * ratio))
        padded = np.ones((self.side, self.side, 3), np.uint8) * FILL
        padded[: size[1], : size[0]] = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR).astype(np.uint8)
        boxes = labels.copy()
        boxes[:, :4] *= ratio
        boxes[:, 2:4] -= boxes[:, :2]
        boxes[:, :2] += boxes[:, 2:4] / 2
        keep = np.minimum(boxes[:, 2], boxes[:, 3]) > 1
        return np.ascontiguousarray(padded.transpose(2, 0, 1), np.float32), boxes[keep][:120]

    def single(self, index: int) -> tuple[Array, Array]:
        """Return a plain sample: colours, mirror, letterbox."""
        return self.letterbox(*self.vary(*self.read(index)))

    def vary(self, image: Array, labels: Array) -> tuple[Array, Array]:
        """Return the sample with other colours, maybe mirrored."""
        gains = self.rng.uniform(-1, 1, 3) * [5, 30, 30] * self.rng.integers(0, 2, 3)
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV).astype(np.int16)
        hsv[..., 0] = (hsv[..., 0] + int(gains[0])) % 180
        hsv[..., 1] = np.clip(hsv[..., 1] + int(gains[1]), 0, 255)
        hsv[..., 2] = np.clip(hsv[..., 2] + int(gains[2]), 0, 255)
        image = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2BGR)
        if self.rng.random() < 0.5:
            image = image[:, ::-1]
            labels = labels.copy()
            labels[:, [0, 2]] = image.shape[1] - labels[:, [2, 0]]
        return image, labels

    def mosaic(self, index: int, *, mixup: bool = False) -> tuple[Array, Array]:
        """Return a mosaic sample, warped, maybe blended, varied and letterboxed."""
        side, rng = self.side, self.rng
        canvas = np.full((2 * side, 2 * side, 3), FILL, np.uint8)
        centre_y, centre_x = (int(rng.uniform(0.5, 1.5) * side) for _ in range(2))
        parts = []
        for place, other in enumerate([index, *rng.integers(0, len(self.paths), 3)]):
            image, labels = self.read(int(other))
            height, width = image.shape[:2]
            top = centre_y - height if place < 2 else centre_y
            left = centre_x - width if place % 2 == 0 else centre_x
            y0, x0, y1, x1 = max(0, top), max(0, left), min(2 * side, top + height), min(2 * side, left + width)
            canvas[y0:y1, x0:x1] = image[y0 - top : y1 - top, x0 - left : x1 - left]
            labels[:, :4] += [left, top, left, top]
            parts.append(labels)
        joined = np.concatenate(parts)
        joined[:, :4] = np.clip(joined[:, :4], 0, 2 * side)
        image, joined = self._affine(canvas, joined)
        if mixup and len(joined):
            image, joined = self._mix_up(image, joined)
        return self.letterbox(*self.vary(image, joined))

    def _affine(self, image: Array, labels: Array) -> tuple[Array, Array]:
        side, rng = self.side, self.rng
        rotation = cv2.getRotationMatrix2D((0, 0), rng.uniform(-10, 10), rng.uniform(*self.scales))
        shear_x, shear_y = (math.tan(math.radians(angle)) for angle in rng.uniform(-2, 2, 2))
        matrix = np.array([[1, shear_y], [shear_x, 1]]) @ rotation
        matrix[:, 2] = rng.uniform(-0.1, 0.1, 2) * side
        warped = cv2.warpAffine(image, matrix, (side, side), borderValue=(FILL, FILL, FILL))
        corners = np.ones((4 * len(labels), 3))
        corners[:, :2] = labels[:, [0, 1, 2, 3, 0, 3, 2, 1]].reshape(-1, 2)
        moved = (corners @ matrix.T).reshape(-1, 8)
        x, y = moved[:, ::2], moved[:, 1::2]
        labels = labels.copy()
        labels[:, :4] = np.clip(np.stack([x.min(1), y.min(1), x.max(1), y.max(1)], axis=1), 0, side)
        return warped, labels[(labels[:, 2] > labels[:, 0]) & (labels[:, 3] > labels[:, 1])]

    def _mix_up(self, image: Array, labels: Array) -> tuple[Array, Array]:
        side, rng = self.side, self.rng
        partner, boxes = self.read(int(rng.integers(len(self.paths))))
        padded = np.ones((side, side, 3), np.uint8) * FILL
        padded[: partner.shape[0], : partner.shape[1]] = partner
        jitter = rng.uniform(0.5, 1.5)
        scaled = cv2.resize(padded, (int(side * jitter), int(side * jitter)))
        boxes[:, :4] *= jitter
        if rng.random() < 0.5:
            scaled = scaled[:, ::-1]
            boxes[:, [0, 2]] = scaled.shape[1] - boxes[:, [2, 0]]
        place = np.zeros((max(side, scaled.shape[0]), max(side, scaled.shape[1]), 3), np.uint8)
        place[: scaled.shape[0], : scaled.shape[1]] = scaled
        top = int(rng.integers(0, place.shape[0] - side + 1))
        left = int(rng.integers(0, place.shape[1] - side + 1))
        piece = place[top : top + side, left : left + side]
        boxes[:, :4] = np.clip(boxes[:, :4] - [left, top, left, top], 0, side)
        blended = 0.5 * image.astype(np.float32) + 0.5 * piece.astype(np.float32)
        return blended.astype(np.uint8), np.concatenate([labels, boxes])
