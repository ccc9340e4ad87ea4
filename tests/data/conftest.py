"""A small COCO data set on disk, and a cache folder that belongs to the test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

MakeCoco = Callable[..., Path]


def write_image(path: Path, height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))


def coco_content(num_images: int, first_id: int = 1) -> dict[str, Any]:
    """Images of 60 x 80 and 100 x 70; every third one has no object."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i in range(num_images):
        height, width = ((60, 80), (100, 70))[i % 2]
        images.append({"id": first_id + i, "file_name": f"{first_id + i:03d}.jpg", "height": height, "width": width})
        for j in range(0 if i % 3 == 2 else 1 + i % 2):
            box = [5 + 10 * j, 10, 20 + i % 5, 30]
            category = (7, 3)[j % 2]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": first_id + i, "category_id": category, "bbox": box}
            )
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 7, "name": "b"}, {"id": 3, "name": "a"}],
    }


@pytest.fixture
def make_coco(tmp_path: Path) -> MakeCoco:
    """Write a data set of the official layout and return its folder."""

    def make(num_train: int = 8, num_val: int = 3, name: str = "data") -> Path:
        root = tmp_path / name
        (root / "annotations").mkdir(parents=True)
        for split, count, first in (("train2017", num_train, 1), ("val2017", num_val, 501)):
            content = coco_content(count, first)
            for image in content["images"]:
                path = root / split / image["file_name"]
                write_image(path, image["height"], image["width"], image["id"])
            (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
        return root

    return make


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("YOLOX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("YOLOX_DATADIR", raising=False)
    return tmp_path / "cache"
