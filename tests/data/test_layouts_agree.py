"""One data set in the layouts of many tools: all describe the same boxes, and perfect detections have AP 1 in each."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from yolox.checkpoint import load_model
from yolox.config import DataConfig
from yolox.data.coco_dataset import CocoDataset
from yolox.data.datamodule import build_val_loader
from yolox.data.dataset_paths import load_split, resolve_dataset
from yolox.evaluation.coco_metric import coco_metric
from yolox.evaluation.loop import build_predict, evaluate
from yolox.structures import Detections, Size

MakeCoco = Callable[..., Path]
SPLITS = (("train2017", "train"), ("val2017", "val"))


def read(root: Path, split: str) -> dict[str, Any]:
    return json.loads((root / "annotations" / f"instances_{split}.json").read_text())


def classes(content: dict[str, Any]) -> dict[int, str]:
    """Return the names by category id, in the order of the ids."""
    return {row["id"]: row["name"] for row in sorted(content["categories"], key=lambda row: row["id"])}


def names(root: Path) -> list[str]:
    return list(classes(read(root, "train2017")).values())


def copy_images(root: Path, split: str, target: Path) -> None:
    """Put the images of a split into a folder; links do, and cost nothing."""
    target.mkdir(parents=True, exist_ok=True)
    for path in (root / split).iterdir():
        os.symlink(path.resolve(), target / path.name)


def write_labels(content: dict[str, Any], folder: Path) -> None:
    """Write a YOLO text file for each image, an empty one for an image without objects."""
    folder.mkdir(parents=True, exist_ok=True)
    index = {category: number for number, category in enumerate(classes(content))}
    for image in content["images"]:
        lines = []
        for row in (row for row in content["annotations"] if row["image_id"] == image["id"]):
            x, y, width, height = row["bbox"]
            edges = (x + width / 2) / image["width"], (y + height / 2) / image["height"]
            size = width / image["width"], height / image["height"]
            lines.append(" ".join(map(repr, (index[row["category_id"]], *edges, *size))) + "\n")
        (folder / image["file_name"]).with_suffix(".txt").write_text("".join(lines))


def yolo(root: Path, target: Path) -> None:
    for split, name in SPLITS:
        copy_images(root, split, target / "images" / name)
        write_labels(read(root, split), target / "labels" / name)
    listed = json.dumps(names(root))
    (target / "data.yaml").write_text(
        f"train: images/train\nval: images/val\nnc: {len(names(root))}\nnames: {listed}\n"
    )


def yolo_beside(root: Path, target: Path) -> None:
    for split, name in SPLITS:
        copy_images(root, split, target / name)
        write_labels(read(root, split), target / name)
    (target / "data.yaml").write_text("train: train\nval: val\n" + numbered_names(root))


def numbered_names(root: Path) -> str:
    return "names:\n" + "".join(f"  {number}: {name}\n" for number, name in enumerate(names(root)))


def yolo_yaml_elsewhere(root: Path, target: Path) -> None:
    yolo(root, target / "coco128")
    (target / "coco128" / "data.yaml").unlink()
    text = "path: ../datasets/coco128\ntrain: images/train\nval: images/val\n"
    (target / "coco128.yaml").write_text(text + numbered_names(root))


def roboflow_yolo(root: Path, target: Path) -> None:
    for (split, _), name in zip(SPLITS, ("train", "valid"), strict=True):
        copy_images(root, split, target / name / "images")
        write_labels(read(root, split), target / name / "labels")
    text = f"train: ../train/images\nval: ../valid/images\nnc: {len(names(root))}\nnames: {names(root)}\n"
    (target / "data.yaml").write_text(text)


def roboflow_coco(root: Path, target: Path) -> None:
    for (split, _), name in zip(SPLITS, ("train", "valid"), strict=True):
        copy_images(root, split, target / name)
        content = read(root, split)
        content["categories"] = [
            {"id": 0, "name": "things", "supercategory": "none"},
            *({**row, "supercategory": "things"} for row in content["categories"]),
        ]
        (target / name / "_annotations.coco.json").write_text(json.dumps(content))


def voc(root: Path, target: Path) -> None:
    for folder in ("Annotations", "ImageSets/Main"):
        (target / folder).mkdir(parents=True)
    for (split, _), name in zip(SPLITS, ("trainval", "test"), strict=True):
        copy_images(root, split, target / "JPEGImages")
        content = read(root, split)
        stems = [Path(image["file_name"]).stem for image in content["images"]]
        (target / "ImageSets" / "Main" / f"{name}.txt").write_text("".join(f"{stem}\n" for stem in stems))
        for image in content["images"]:
            xml = f"<annotation><size><width>{image['width']}</width><height>{image['height']}</height></size>"
            for row in (row for row in content["annotations"] if row["image_id"] == image["id"]):
                x, y, width, height = row["bbox"]
                known_as = classes(content)[row["category_id"]]
                xml += f"<object><name>{known_as}</name><bndbox><xmin>{x + 1}</xmin>"
                xml += f"<ymin>{y + 1}</ymin><xmax>{x + width}</xmax><ymax>{y + height}</ymax></bndbox></object>"
            (target / "Annotations" / image["file_name"]).with_suffix(".xml").write_text(xml + "</annotation>")


def cvat(root: Path, target: Path) -> None:
    (target / "annotations").mkdir(parents=True)
    for (split, _), name in zip(SPLITS, ("Train", "Validation"), strict=True):
        copy_images(root, split, target / "images" / name)
        (target / "annotations" / f"instances_{name}.json").write_text(json.dumps(read(root, split)))


def label_studio(root: Path, target: Path) -> None:
    for split, name in SPLITS:
        copy_images(root, split, target / "images")
        content = read(root, split)
        for image in content["images"]:
            image["file_name"] = "images\\" + image["file_name"]
        (target / f"{name}.json").write_text(json.dumps(content))


def labelme2coco(root: Path, target: Path) -> None:
    for split, name in SPLITS:
        copy_images(root, split, target / name / "JPEGImages")
        content = read(root, split)
        content["categories"].insert(0, {"id": 0, "name": "_background_", "supercategory": None})
        for image in content["images"]:
            image["file_name"] = "JPEGImages/" + image["file_name"]
        (target / name / "annotations.json").write_text(json.dumps(content))


def labelimg_split(root: Path, target: Path) -> None:
    for split, name in SPLITS:
        copy_images(root, split, target / name)
        write_labels(read(root, split), target / name)
    (target / "classes.txt").write_text("".join(f"{name}\r\n" for name in names(root)))


def darknet(root: Path, target: Path) -> None:
    for (split, name), folder in zip(SPLITS, ("obj_train_data", "obj_val_data"), strict=True):
        copy_images(root, split, target / folder)
        write_labels(read(root, split), target / folder)
        lines = [f"data/{folder}/{image['file_name']}\n" for image in read(root, split)["images"]]
        (target / f"{name}.txt").write_text("".join(lines))
    (target / "obj.names").write_text("".join(f"{name}\n" for name in names(root)))


LAYOUTS = (
    *(yolo, yolo_beside, yolo_yaml_elsewhere, roboflow_yolo, roboflow_coco, voc, cvat, label_studio, labelme2coco),
    *(labelimg_split, darknet),
)


def boxes_by_image(data: CocoDataset) -> dict[str, list[tuple[Any, ...]]]:
    """Return (class name, edges) of every object, by the image's base name."""
    return {
        Path(data.file_name(i)).name: sorted(
            (data.class_names[label], *(round(float(edge), 3) for edge in box))
            for box, label in zip(*data.objects(i), strict=True)
        )
        for i in range(len(data))
    }


def perfect_ap(data: CocoDataset) -> float:
    found = {}
    for i, image_id in enumerate(data.image_ids.tolist()):
        boxes, labels = data.objects(i)
        found[image_id] = Detections(boxes, np.linspace(0.9, 0.5, len(boxes), dtype=np.float32), labels)
    return coco_metric(data.ground_truth_json(), found).metrics["AP"]


@pytest.mark.parametrize("write", LAYOUTS, ids=lambda write: write.__name__)
def test_all_layouts_describe_the_same_boxes(make_coco: MakeCoco, tmp_path: Path, write: Any) -> None:
    root, target = make_coco(), tmp_path / write.__name__
    write(root, target)
    truth, found = resolve_dataset(root), resolve_dataset(target)
    train = load_split(found.require("train"))
    assert train.class_names == ("a", "b")
    for split in ("train", "val"):
        expected = load_split(truth.require(split))  # type: ignore[arg-type]
        ours = load_split(found.require(split), train.categories)  # type: ignore[arg-type]
        assert boxes_by_image(ours) == boxes_by_image(expected)
        assert sorted(map(tuple, ours.sizes.tolist())) == sorted(map(tuple, expected.sizes.tolist()))
        assert all(ours.path(i).is_file() for i in range(len(ours)))
        assert perfect_ap(ours) == pytest.approx(1.0, abs=1e-4)
        assert all(finding.severity == "note" for finding in ours.findings)


@pytest.mark.parametrize("kind", ["labelimg", "label_studio_yolo", "labelimg_voc", "one_json"])
def test_a_set_without_splits_is_divided_by_image_names(make_coco: MakeCoco, tmp_path: Path, kind: str) -> None:
    root, target = make_coco(num_train=10), tmp_path / "one"
    content = read(root, "train2017")
    if kind == "labelimg":
        copy_images(root, "train2017", target)
        write_labels(content, target)
        (target / "classes.txt").write_text("a\nb\n")
    elif kind == "label_studio_yolo":
        copy_images(root, "train2017", target / "images")
        write_labels(content, target / "labels")
        (target / "classes.txt").write_text("a\nb\n")
    elif kind == "labelimg_voc":
        voc(root, tmp_path / "voc")
        copy_images(root, "train2017", target)
        for path in (tmp_path / "voc" / "Annotations").glob("0*.xml"):
            shutil.copy(path, target)
    else:
        copy_images(root, "train2017", target / "images")
        (target / "result.json").write_text(json.dumps(content))
    whole = load_split(resolve_dataset(target).require("train"))
    assert boxes_by_image(whole) == boxes_by_image(load_split(resolve_dataset(root).require("train")))
    paths = resolve_dataset(target, val_fraction=0.3)
    train, val = load_split(paths.require("train")), load_split(paths.require("val"))
    assert (len(train), len(val)) == (7, 3)
    assert boxes_by_image(train) | boxes_by_image(val) == boxes_by_image(whole)
    assert boxes_by_image(load_split(paths.require("val"))) == boxes_by_image(val)


def test_the_same_images_are_drawn_for_evaluation_whatever_the_layout(make_coco: MakeCoco, tmp_path: Path) -> None:
    root = make_coco(num_train=12)
    (root / "annotations" / "instances_val2017.json").unlink()
    (tmp_path / "voc").mkdir()
    copy_images(root, "train2017", tmp_path / "yolo")
    write_labels(read(root, "train2017"), tmp_path / "yolo")
    (tmp_path / "yolo" / "classes.txt").write_text("a\nb\n")
    drawn = [load_split(resolve_dataset(p, val_fraction=0.25).require("val")) for p in (root, tmp_path / "yolo")]
    assert boxes_by_image(drawn[0]) == boxes_by_image(drawn[1])
    assert len(drawn[0]) == 3


@pytest.fixture(scope="module")
def trained(coco_mini: Path, nano_weights: Path) -> tuple[float, tuple[str, ...], dict[str, Detections]]:
    """AP of the published weights on the real images, their class names, and what they find, by the image's name."""
    model = load_model(nano_weights)
    config = DataConfig(data_dir=str(coco_mini), data_num_workers=0)
    loader = build_val_loader(config, batch_size=16, test_size=Size(416, 416), class_names=model.class_names)
    truth = loader.dataset.ground_truth_json()
    result = evaluate(build_predict(model.detector), loader, truth, confidence=0.01, nms_iou=0.65)
    data = loader.dataset
    found = {Path(data.file_name(i)).name: result.detections[int(data.image_ids[i])] for i in range(len(data))}
    return result.metrics["AP"], model.class_names, found


@pytest.mark.parametrize("write", LAYOUTS, ids=lambda write: write.__name__)
def test_all_layouts_give_the_trained_weights_one_ap(
    coco_mini: Path,
    trained: tuple[float, tuple[str, ...], dict[str, Detections]],
    tmp_path: Path,
    write: Callable[[Path, Path], None],
) -> None:
    ap, class_names, found = trained
    assert ap == pytest.approx(0.3397, abs=1e-3)
    write(coco_mini, tmp_path / "data")
    config = DataConfig(data_dir=str(tmp_path / "data"), data_num_workers=0)
    data = build_val_loader(config, batch_size=16, test_size=Size(416, 416), class_names=class_names).dataset
    by_id = {int(data.image_ids[i]): found[Path(data.file_name(i)).name] for i in range(len(data))}
    assert len(by_id) == len(found) == 64
    assert coco_metric(data.ground_truth_json(), by_id).metrics["AP"] == pytest.approx(ap, abs=1e-4)
