"""A data set of random images, each with one label that says nothing about it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

NAMES = ("apple", "bolt", "crab")


def write_data(folder: Path, count: int, names: Sequence[str] = NAMES, *, labels: bool = True) -> Path:
    """Write images of 48 rows and 64 columns, and their labels as COCO does; every class is named in turn."""
    rng = np.random.default_rng(0)
    (folder / "annotations").mkdir(parents=True)
    (folder / "val2017").mkdir()
    images, annotations = [], []
    for number in range(1, count + 1):
        name = f"{number:03d}.png"
        cv2.imwrite(str(folder / "val2017" / name), rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
        images.append({"id": number, "file_name": name, "height": 48, "width": 64})
        annotations.append({"image_id": number, "category_id": 1 + number % len(names), "bbox": [4, 4, 30, 20]})
    content = {
        "images": images,
        "annotations": annotations if labels else [],
        "categories": [{"id": k + 1, "name": name} for k, name in enumerate(names)],
    }
    (folder / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return folder
