"""Small data sets of every form of labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from yolox.data.coco_dataset import CocoDataset
from yolox.data.dataset_paths import load_split, resolve_dataset
from yolox.data.formats.checks import check_split
from yolox.data.formats.coco_json import describe_coco

ROW = "1 0.5 0.5 0.25 0.5\n"


def image(path: Path, height: int = 40, width: int = 80) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, np.full((height, width, 3), 90, np.uint8))[1].tobytes())


def yolo(root: Path, *names: str, yaml: str = "train: images\nval: images\nnames: [a, b]\n") -> None:
    for name in names or ("x.png", "y.png"):
        image(root / "images" / name)
        path = (root / "labels" / name).with_suffix(".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(ROW)
    (root / "data.yaml").write_text(yaml)


def train(root: Path) -> CocoDataset:
    return load_split(resolve_dataset(root).require("train"))


def codes(data: CocoDataset) -> list[str]:
    return [finding.code for finding in data.findings]


def coco(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "images": [{"id": 1, "file_name": "x.png", "width": 80, "height": 40}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 20]}],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }
    return {**base, **changes}


def index(tmp_path: Path, content: dict[str, Any]) -> CocoDataset:
    image(tmp_path / "x.png")
    return check_split(describe_coco(content, "labels.json", [tmp_path]))


def voc(root: Path, stem: str, *names: str, list_name: str = "trainval") -> None:
    image(root / "JPEGImages" / f"{stem}.png")
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    corners = "<xmin>11</xmin><ymin>6</ymin><xmax>30</xmax><ymax>25</ymax>"
    objects = "".join(f"<object><name>{name}</name><bndbox>{corners}</bndbox></object>" for name in names)
    (root / "Annotations" / f"{stem}.xml").write_text(f"<annotation>{objects}</annotation>")
    with (root / "ImageSets" / "Main" / f"{list_name}.txt").open("a") as handle:
        handle.write(f"{stem}\n")
