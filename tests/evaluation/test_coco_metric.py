from __future__ import annotations

import contextlib
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_detections import CATEGORY_IDS, synthetic

from yolox.errors import DataError
from yolox.evaluation.coco_metric import METRICS, coco_metric
from yolox.structures import Detections


def by_pycocotools(truth: dict[str, Any], detections: dict[int, Detections]) -> np.ndarray:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    ids = sorted(category["id"] for category in truth["categories"])
    results = []
    for image_id, found in detections.items():
        for box, score, label in zip(found.boxes_xyxy.astype(float), found.scores, found.labels, strict=True):
            left, top, right, bottom = box
            xywh = [left, top, right - left, bottom - top]
            results.append({"image_id": image_id, "category_id": ids[label], "bbox": xywh, "score": float(score)})
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        annotations = [dict(annotation, id=number + 1) for number, annotation in enumerate(truth["annotations"])]
        reference.dataset = dict(truth, annotations=annotations, info={})
        reference.createIndex()
        evaluation = COCOeval(reference, reference.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return np.asarray(evaluation.stats)


@pytest.mark.parametrize("seed", range(4))
def test_equal_to_pycocotools(seed: int) -> None:
    truth, detections = synthetic(seed)
    result = coco_metric(truth, detections)
    expected = by_pycocotools(truth, detections)
    assert tuple(result.metrics) == METRICS
    np.testing.assert_allclose(list(result.metrics.values()), expected, atol=1e-6)
    assert 0.03 < result.metrics["AP"] < 0.9  # the data are neither trivial nor hopeless


def test_more_than_a_hundred_detections_of_a_class_change_nothing() -> None:
    truth, detections = synthetic(5, num_images=2)
    crowded = {}
    for image_id, found in detections.items():
        one_class = np.zeros(len(found.labels), np.int64)
        crowded[image_id] = Detections(found.boxes_xyxy, found.scores, one_class)
        assert len(found.scores) > 100
    np.testing.assert_allclose(
        list(coco_metric(truth, crowded).metrics.values()), by_pycocotools(truth, crowded), atol=1e-6
    )


def test_perfect_detections() -> None:
    truth, _ = synthetic(1, crowds=False)
    index = {number: k for k, number in enumerate(CATEGORY_IDS)}
    perfect = {}
    for image in truth["images"]:
        own = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        boxes = np.array([a["bbox"] for a in own], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = np.array([index[a["category_id"]] for a in own], np.int64)
        perfect[image["id"]] = Detections(boxes, np.ones(len(own), np.float32), labels)
    result = coco_metric(truth, perfect)
    assert result.metrics["AP"] == pytest.approx(1.0)
    assert [row.ap for row in result.per_class] == pytest.approx([1.0, 1.0, 1.0])
    assert [row.ar for row in result.per_class] == pytest.approx([1.0, 1.0, 1.0])
    assert result.num_objects == len(truth["annotations"]) == sum(row.num_objects for row in result.per_class)


@pytest.mark.parametrize(
    "empty", [{}, {1: Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))}]
)
def test_no_detections_at_all_is_zero(empty: dict[int, Detections]) -> None:
    truth, _ = synthetic(2)
    result = coco_metric(truth, empty)
    assert set(result.metrics.values()) == {0.0}
    assert all(row.ap == 0.0 and row.ar == 0.0 for row in result.per_class)
    assert result.num_detections == 0


def test_no_labels_is_undefined_not_zero() -> None:
    truth, detections = synthetic(2)
    truth["annotations"] = []
    result = coco_metric(truth, detections)
    assert not result.has_labels
    assert all(math.isnan(value) for value in result.metrics.values())
    assert all(math.isnan(row.ap) and math.isnan(row.ar) for row in result.per_class)


def test_a_class_without_labels_is_undefined_and_left_out_of_the_mean() -> None:
    truth, detections = synthetic(3)
    truth["annotations"] = [a for a in truth["annotations"] if a["category_id"] != 7]
    result = coco_metric(truth, detections)
    assert math.isnan(result.per_class[1].ap)
    assert result.per_class[1].num_objects == 0
    defined = [row.ap for row in result.per_class if row.num_objects]
    assert result.metrics["AP"] == pytest.approx(np.mean(defined))


def test_area_and_iscrowd_may_be_missing_and_nothing_is_changed() -> None:
    truth, detections = synthetic(4, crowds=False)
    for annotation in truth["annotations"]:
        annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
    expected = coco_metric(truth, detections).metrics
    for annotation in truth["annotations"]:
        del annotation["area"], annotation["iscrowd"]
    before = json.dumps(truth)
    assert coco_metric(truth, detections).metrics == expected
    assert json.dumps(truth) == before


def test_detections_of_strange_images_or_classes_are_refused() -> None:
    truth, detections = synthetic(0, num_images=3)
    with pytest.raises(DataError, match="first id 99"):
        coco_metric(truth, {99: detections[1]})
    wrong = Detections(detections[1].boxes_xyxy[:1], detections[1].scores[:1], np.array([3]))
    with pytest.raises(DataError, match="class index 3, the data set has 3 classes"):
        coco_metric(truth, {1: wrong})


def test_silent(capfd: pytest.CaptureFixture[str]) -> None:
    coco_metric(*synthetic(0))
    assert capfd.readouterr() == ("", "")


@pytest.mark.realdata
def test_equal_to_pycocotools_on_coco_mini(coco_mini: Path) -> None:
    truth = json.loads((coco_mini / "annotations" / "instances_val2017.json").read_text())
    rng = np.random.default_rng(0)
    ids = sorted(category["id"] for category in truth["categories"])
    detections = {}
    for image in truth["images"]:
        own = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        boxes = np.array([a["bbox"] for a in own], np.float32).reshape(-1, 4).repeat(3, axis=0)
        boxes[:, 2:] += boxes[:, :2]
        boxes += rng.normal(0, 5, boxes.shape).astype(np.float32)
        labels = np.array([ids.index(a["category_id"]) for a in own], np.int64).repeat(3)
        detections[image["id"]] = Detections(boxes, rng.random(len(boxes)).astype(np.float32), labels)
    result = coco_metric(truth, detections)
    np.testing.assert_allclose(list(result.metrics.values()), by_pycocotools(truth, detections), atol=1e-6)
