"""Pascal VOC and Ultralytics data sets give the same index as COCO."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from yolox.data.coco_dataset import CocoDataset
from yolox.data.dataset_paths import load_split, resolve_dataset
from yolox.errors import DataError

MakeCoco = Callable[..., Path]


def assert_same_objects(ours: CocoDataset, truth: CocoDataset) -> None:
    assert len(ours) == len(truth)
    for index in range(len(truth)):
        assert Path(ours.file_name(index)).name == truth.file_name(index)
        assert ours.size(index) == truth.size(index)
        boxes, labels = ours.objects(index)
        expected_boxes, expected_labels = truth.objects(index)
        np.testing.assert_allclose(boxes, expected_boxes, atol=1e-3)
        assert [ours.class_names[i] for i in labels] == [truth.class_names[i] for i in expected_labels]


def to_yolo(root: Path, target: Path) -> None:
    for split, name in (("train2017", "train"), ("val2017", "val")):
        content = json.loads((root / "annotations" / f"instances_{split}.json").read_text())
        (target / "images").mkdir(parents=True, exist_ok=True)
        (root / split).rename(target / "images" / name)
        (root / split).symlink_to(target / "images" / name)
        (target / "labels" / name).mkdir(parents=True)
        for image in content["images"]:
            rows = [item for item in content["annotations"] if item["image_id"] == image["id"]]
            lines = []
            for row in rows:
                x, y, width, height = row["bbox"]
                cx, cy = (x + width / 2) / image["width"], (y + height / 2) / image["height"]
                label = 1 if row["category_id"] == 7 else 0
                lines.append(f"{label} {cx} {cy} {width / image['width']} {height / image['height']}\n")
            if lines:
                (target / "labels" / name / image["file_name"]).with_suffix(".txt").write_text("".join(lines))


@pytest.mark.parametrize("names", ["names: [a, b]", "names: {0: a, 1: b}"])
@pytest.mark.parametrize("path", ["", "path: ."])
def test_ultralytics(make_coco: MakeCoco, tmp_path: Path, names: str, path: str) -> None:
    root = make_coco()
    target = tmp_path / "yolo"
    to_yolo(root, target)
    (target / "data.yaml").write_text(f"{path}\ntrain: images/train\nval: images/val\n{names}\n")
    ours, truth = resolve_dataset(target), resolve_dataset(root)
    for split in ("train", "val"):
        assert_same_objects(load_split(ours.require(split)), load_split(truth.require(split)))  # type: ignore[arg-type]


def test_ultralytics_list_of_files_polygons_and_exported_paths(make_coco: MakeCoco, tmp_path: Path) -> None:
    root, target = make_coco(), tmp_path / "yolo"
    to_yolo(root, target)
    (target / "labels" / "train" / "001.txt").write_text("0 0.1 0.2 0.5 0.2 0.5 0.6 0.1 0.6\n")
    (target / "list.txt").write_text("images/train/001.jpg\n")
    (target / "data.yaml").write_text("train: list.txt\nval: ../images/val\nnc: 2\n")
    paths = resolve_dataset(target)
    train = load_split(paths.require("train"))
    assert train.class_names == ("class 0", "class 1")
    np.testing.assert_allclose(train.objects(0)[0], [[8, 12, 40, 36]], atol=1e-4)
    assert len(load_split(paths.require("val"))) == 3


@pytest.mark.parametrize("line", ["5 0.1 0.1 0.1 0.1", "0 0.1 0.1", "0 nan 0 1 1", "x 0 0 1 1", "0.5 0 0 1 1"])
def test_ultralytics_bad_line_is_named(make_coco: MakeCoco, tmp_path: Path, line: str) -> None:
    root, target = make_coco(), tmp_path / "yolo"
    to_yolo(root, target)
    (target / "labels" / "train" / "002.txt").write_text(f"0 0.5 0.5 0.1 0.1\n{line}\n")
    (target / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [a, b]\n")
    with pytest.raises(DataError, match=r"002\.txt' line 2"):
        load_split(resolve_dataset(target).require("train"))


@pytest.mark.parametrize("text", ["train: absent\nnames: [a]", "- a", "train: [", "train: ."])
def test_ultralytics_bad_config(tmp_path: Path, text: str) -> None:
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(DataError):
        load_split(resolve_dataset(tmp_path).require("train"))


def write_voc(folder: Path, stem: str, objects: str, size: str = "") -> None:
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "Annotations" / f"{stem}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    cv2.imwrite(str(folder / "JPEGImages" / f"{stem}.jpg"), np.zeros((40, 60, 3), np.uint8))
    with (folder / "ImageSets" / "Main" / "trainval.txt").open("a") as handle:
        handle.write(f"{stem}\n")


def box(name: str, *edges: float) -> str:
    tags = "".join(f"<{tag}>{edge}</{tag}>" for tag, edge in zip(("xmin", "ymin", "xmax", "ymax"), edges, strict=True))
    return f"<object><name>{name}</name><difficult>1</difficult><bndbox>{tags}</bndbox></object>"


@pytest.mark.parametrize("folder", [".", "VOC2007"])
def test_voc(tmp_path: Path, folder: str) -> None:
    root = tmp_path / folder
    write_voc(root, "a", box("dog", 11, 6, 31, 26.7), "<size><width>60</width><height>40</height></size>")
    write_voc(root, "b", "")
    data = load_split(resolve_dataset(tmp_path).require("train"))
    assert data.class_names == ("dog",)
    boxes, labels = data.objects(0)
    np.testing.assert_allclose(boxes, [[10, 5, 31, 26.7]], rtol=1e-6)
    assert data.class_names[labels[0]] == "dog"
    assert data.size(1) == (40, 60)
    assert len(data.objects(1)[1]) == 0


def test_voc_with_own_classes_and_bad_files(tmp_path: Path) -> None:
    write_voc(tmp_path, "a", box("Gnu", 1, 1, 9, 9) + box("ant", 1, 1, 5, 5))
    assert load_split(resolve_dataset(tmp_path).require("train")).class_names == ("Gnu", "ant")
    write_voc(tmp_path, "b", "<object><name>ant</name></object>")
    with pytest.raises(DataError, match=r"b\.xml.*bndbox"):
        load_split(resolve_dataset(tmp_path).require("train"))
    (tmp_path / "Annotations" / "b.xml").write_text("<annotation>")
    with pytest.raises(DataError, match=r"b\.xml"):
        load_split(resolve_dataset(tmp_path).require("train"))
