from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from yolox.data.coco_dataset import CocoDataset
from yolox.data.formats.checks import check_split
from yolox.data.formats.coco_json import describe_coco, read_coco_json
from yolox.errors import DataError
from yolox.structures import Size


def content(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "images": [{"id": 9, "file_name": "x.jpg", "height": 50, "width": 100}, {"id": 4, "height": 10, "width": 10}],
        "annotations": [
            {"image_id": 4, "category_id": 20, "bbox": [1, 1, 4, 5]},
            {"image_id": 9, "category_id": 10, "bbox": [-10, 5, 30, 20], "area": 77.0, "iscrowd": 0},
            {"image_id": 9, "category_id": 20, "bbox": [0, 0, 100, 50], "iscrowd": 1},
        ],
        "categories": [{"id": 20, "name": "dog"}, {"id": 10, "name": "cat"}],
    }
    return {**base, **changes}


def index(tmp_path: Path, value: dict[str, Any]) -> CocoDataset:
    (tmp_path / "x.jpg").touch()
    return check_split(describe_coco(value, "labels.json", [tmp_path / "absent", tmp_path]))


def test_classes_are_sorted_by_id_and_objects_follow_their_image(tmp_path: Path) -> None:
    data = index(tmp_path, content())
    assert data.class_names == ("cat", "dog")
    assert data.category_ids == (10, 20)
    assert data.image_ids.tolist() == [9, 4]
    boxes, labels = data.objects(1)
    np.testing.assert_array_equal(boxes, [[1, 1, 5, 6]])
    assert labels.tolist() == [1]
    assert data.size(0) == Size(50, 100)


def test_boxes_are_clipped_and_crowds_left_out_of_training(tmp_path: Path) -> None:
    boxes, labels = index(tmp_path, content()).objects(0)
    np.testing.assert_array_equal(boxes, [[0, 5, 20, 25]])
    assert labels.tolist() == [0]
    assert boxes.dtype == np.float32
    assert labels.dtype == np.int64


def test_missing_file_name_falls_back_to_the_id(tmp_path: Path) -> None:
    data = index(tmp_path, content())
    assert data.path(0) == tmp_path / "x.jpg"
    assert data.file_name(1) == "000000000004.jpg"


def test_ground_truth_keeps_raw_boxes_areas_and_crowds(tmp_path: Path) -> None:
    truth = index(tmp_path, content()).ground_truth_json()
    assert [item["id"] for item in truth["annotations"]] == [1, 2, 3]
    assert truth["annotations"][0] == {
        "id": 1,
        "image_id": 9,
        "category_id": 10,
        "bbox": [-10.0, 5.0, 30.0, 20.0],
        "area": 77.0,
        "iscrowd": 0,
    }
    assert truth["annotations"][1]["iscrowd"] == 1
    assert truth["annotations"][2]["area"] == 20.0
    assert truth["categories"] == [{"id": 10, "name": "cat"}, {"id": 20, "name": "dog"}]
    json.dumps(truth)


def test_boxes_without_area_inside_are_dropped_counted_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    boxes = [[200, 5, 30, 20], [5, 5, 0, 20], [5, 5, -3, 20], [90, 40, 30, 30], [1, 1, 5, 5]]
    rows = [{"image_id": 9, "category_id": 10, "bbox": box} for box in boxes]
    with caplog.at_level(logging.WARNING):
        data = index(tmp_path, content(annotations=rows))
    assert len(caplog.records) == 1
    assert "of 5 boxes, 1 reach beyond" in caplog.text
    assert "3 have no area" in caplog.text
    np.testing.assert_array_equal(data.objects(0)[0], [[90, 40, 100, 50], [1, 1, 6, 6]])


def test_labels_rounded_to_the_border_make_no_noise(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    index(tmp_path, content(annotations=[{"image_id": 9, "category_id": 10, "bbox": [0, 0, 100.4, 50]}]))
    assert not caplog.records


def test_no_annotations_at_all(tmp_path: Path) -> None:
    data = index(tmp_path, content(annotations=[]))
    assert data.objects(0)[0].shape == (0, 4)
    assert len(data.labelled()) == 0
    assert data.ground_truth_json()["annotations"] == []


def test_labelled_counts_objects_to_learn_only(tmp_path: Path) -> None:
    crowd = [{"image_id": 9, "category_id": 10, "bbox": [0, 0, 5, 5], "iscrowd": 1}]
    assert index(tmp_path, content(annotations=crowd)).labelled().tolist() == []
    assert index(tmp_path, content()).labelled().tolist() == [0, 1]


def annotation(**changes: Any) -> dict[str, Any]:
    return content(annotations=[{"image_id": 9, "category_id": 10, "bbox": [1, 1, 5, 5], **changes}])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (annotation(category_id=99), r"annotations\[0\] names category id 99"),
        (annotation(image_id=99), r"annotations\[0\] names image id 99"),
        (annotation(bbox=[1, float("nan"), 5, 5]), "four finite numbers"),
        (annotation(bbox=[1, 1, float("inf"), 5]), "four finite numbers"),
        (annotation(bbox=[1, 2, 3]), r"annotations\[0\].*four finite numbers"),
        (annotation(bbox=None), "four finite numbers"),
        (annotation(bbox={"x": 1}), "four finite numbers"),
        (annotation(image_id="nine"), "whole number under 'image_id'"),
        (annotation(image_id=None), "whole number under 'image_id'"),
        (content(annotations=["?"]), "whole number under 'image_id'"),
        (content(images=[]), "no images"),
        (content(images=[{"id": 1, "height": 5}]), "whole number under 'width'"),
        (content(images=[{"id": 1, "height": 5, "width": 0}]), "expected > 0"),
        (content(images=[{"id": 9, "height": 5, "width": 5}] * 2), "occurs twice"),
        (content(categories=[]), "no categories"),
        (content(categories=[{"id": 1}, {"id": 1}]), "share an id"),
    ],
)
def test_malformed_labels_are_data_errors(tmp_path: Path, value: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        index(tmp_path, value)


def test_images_that_lie_nowhere(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of the images.*x\.jpg.*train_images"):
        check_split(describe_coco(content(), "labels.json", [tmp_path]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "holds list"),
        ('{"images": []}', "no list 'annotations'"),
        ('{"images": {}, "annotations": [], "categories": []}', "no list 'images'"),
    ],
)
def test_malformed_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_coco_json(path)


def test_absent_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        read_coco_json(tmp_path / "absent.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(DataError, match="not valid JSON"):
        read_coco_json(tmp_path / "binary.json")


def test_other_categories_are_matched_by_name(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").touch()
    wanted = ((1, "bird"), (2, "cat"), (3, "dog"))
    data = check_split(describe_coco(content(), "labels.json", [tmp_path]), wanted)
    assert data.class_names == ("bird", "cat", "dog")
    assert data.objects(0)[1].tolist() == [1]
    assert {item["category_id"] for item in data.ground_truth_json()["annotations"]} == {2, 3}
    with pytest.raises(DataError, match="uses category 'cat'"):
        check_split(describe_coco(content(), "labels.json", [tmp_path]), ((1, "dog"),))


def test_memory_per_image_stays_below_one_kilobyte(tmp_path: Path) -> None:
    images = [{"id": i, "file_name": f"{i:012d}.jpg", "height": 480, "width": 640} for i in range(2000)]
    rows = [{"image_id": i % 2000, "category_id": 10, "bbox": [1, 2, 3, 4]} for i in range(2000 * 8)]
    (tmp_path / "000000000000.jpg").touch()
    data = index(tmp_path, content(images=images, annotations=rows))
    assert data.nbytes / len(data) < 600


def _read(folder: Path, split: str) -> CocoDataset:
    content = read_coco_json(folder / "annotations" / f"instances_{split}.json")
    return check_split(describe_coco(content, split, [folder / split]))


@pytest.mark.realdata
def test_coco_mini(coco_mini: Path) -> None:
    train = _read(coco_mini, "train2017")
    val = _read(coco_mini, "val2017")
    assert (len(train), len(val)) == (128, 64)
    assert len(train.class_names) == 80
    assert train.categories == val.categories
    assert len(train.labelled()) == 126
    truth = val.ground_truth_json()
    raw = json.loads((coco_mini / "annotations" / "instances_val2017.json").read_text())
    assert len(truth["annotations"]) == len(raw["annotations"])
    key = lambda item: (item["image_id"], item["category_id"], item["bbox"])  # noqa: E731
    for ours, theirs in zip(sorted(truth["annotations"], key=key), sorted(raw["annotations"], key=key), strict=True):
        assert key(ours) == key(theirs)
        assert ours["area"] == theirs["area"]
