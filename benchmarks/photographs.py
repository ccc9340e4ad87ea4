"""A data set of made-up photographs, as large and as hard to decode as COCO's, the same on every machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

SIZES = ((480, 640), (427, 640), (640, 480))
NUM_CLASSES = 80
QUALITY = 93


def write_photographs(folder: Path, count: int) -> Path:
    """Write ``count`` JPEG files of 640 pixels (about 170 kB each) with COCO labels; return the folder of the data set.

    Args:
        folder: An empty folder.
        count: Images; both splits list the same ones.
    """
    images_dir, labels_dir = folder / "train2017", folder / "annotations"
    images_dir.mkdir()
    labels_dir.mkdir()
    rng = np.random.default_rng(0)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(1, count + 1):
        height, width = SIZES[number % len(SIZES)]
        name = f"{number:012d}.jpg"
        cv2.imwrite(str(images_dir / name), _photograph(height, width, rng), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        for _ in range(1 + int(rng.poisson(6))):
            box_width, box_height = rng.uniform(0.05, 0.5, 2) * (width, height)
            left, top = rng.uniform(0, 1, 2) * (width - box_width, height - box_height)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 1 + int(rng.integers(NUM_CLASSES)),
                    "bbox": [left, top, box_width, box_height],
                    "area": box_width * box_height,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": number + 1, "name": f"class {number}"} for number in range(NUM_CLASSES)]
    text = json.dumps({"images": images, "annotations": annotations, "categories": categories})
    (labels_dir / "instances_train2017.json").write_text(text, encoding="utf-8")
    (labels_dir / "instances_val2017.json").write_text(text, encoding="utf-8")
    (folder / "val2017").symlink_to(images_dir, target_is_directory=True)
    return folder


def _photograph(height: int, width: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return noise whose strength falls with its frequency, as in photographs."""
    image = np.full((height, width, 3), 120.0, np.float32)
    cell = 320
    while cell >= 1:
        coarse = rng.normal(0, 1, (height // cell + 2, width // cell + 2, 3)).astype(np.float32)
        image += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) * 6.0 * cell**0.35
        cell //= 2
    return np.clip(image, 0, 255).astype(np.uint8)
