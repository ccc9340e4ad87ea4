from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from yolox.errors import DataError
from yolox.evaluation.loop import EvaluationResult, Share, evaluate
from yolox.evaluation.summary import class_table, coco_lines, summary, time_line
from yolox.structures import Batch, Targets

SIZE = 64


def truth(num_images: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    rows = []
    for image_id in range(1, num_images + 1):
        for _ in range(int(rng.integers(1, 4))):
            left, top, width, height = *rng.integers(0, 60, 2), *rng.integers(20, 60, 2)
            rows.append(
                {
                    "image_id": image_id,
                    "category_id": int(rng.integers(1, 3)),
                    "bbox": [int(left), int(top), int(width), int(height)],
                }
            )
    return {
        "images": [{"id": image_id} for image_id in range(1, num_images + 1)],
        "annotations": rows,
        "categories": [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}],
    }


def batches(image_ids: list[int], size: int = 4) -> Iterator[Batch]:
    """Images whose first pixel is their id, from files twice as large as the input."""
    empty = Targets(torch.zeros(0, 0, 4), torch.zeros(0, 0, dtype=torch.long), torch.zeros(0, 0, dtype=torch.bool))
    for start in range(0, len(image_ids), size):
        ids = torch.tensor(image_ids[start : start + size])
        images = torch.zeros(len(ids), 3, SIZE, SIZE, dtype=torch.uint8)
        images[:, 0, 0, 0] = ids.to(torch.uint8)
        yield Batch(images, empty, ids, torch.full((len(ids), 2), 2 * SIZE), torch.zeros_like(ids))


class Oracle:
    """Predicts the labels, at the scale of the input, with a score that varies from image to image, and some noise."""

    def __init__(self, ground_truth: dict[str, Any], miss: int = 0) -> None:
        self.rows = ground_truth["annotations"]
        self.miss = miss

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        assert images.dtype == torch.uint8
        boxes, scores = torch.zeros(len(images), 8, 4), torch.zeros(len(images), 8, 2)
        for index, image in enumerate(images):
            image_id = int(image[0, 0, 0])
            if image_id == self.miss:
                continue
            for anchor, row in enumerate(row for row in self.rows if row["image_id"] == image_id):
                left, top, width, height = (value / 2 for value in row["bbox"])
                boxes[index, anchor] = torch.tensor([left, top, left + width, top + height])
                scores[index, anchor, row["category_id"] - 1] = 0.5 + image_id / 100
            boxes[index, 7] = torch.tensor([1.0, 1.0, 9.0, 9.0])
            scores[index, 7, 0] = 0.45 + image_id / 100
        return boxes, scores


def run(ids: list[int], num_images: int = 10, miss: int = 0, **options: Any) -> EvaluationResult:
    ground_truth = truth(num_images)
    return evaluate(Oracle(ground_truth, miss), batches(ids), ground_truth, confidence=0.01, nms_iou=0.9, **options)


def test_all_images_count_and_boxes_return_to_original_pixels() -> None:
    result = run(list(range(1, 11)))
    assert result.metrics["AR100"] == pytest.approx(1.0)
    assert 0.5 < result.metrics["AP"] < 1.0  # the noise costs precision
    assert result.num_missing == 0
    assert set(result.detections) == set(range(1, 11))
    first = next(row for row in truth(10)["annotations"] if row["image_id"] == 1)
    left, top, width, height = first["bbox"]
    differences = np.abs(result.detections[1].boxes_xyxy - [left, top, left + width, top + height]).max(axis=1)
    assert differences.min() < 1e-4


def test_times_cover_every_batch_the_last_included(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(1000))
    monkeypatch.setattr("yolox.evaluation.loop.time.perf_counter", lambda: float(next(ticks)))
    done: list[int] = []
    result = run(list(range(1, 11)), on_batch=done.append)
    assert done == [4, 8, 10]
    assert result.times.num_images == 10
    assert (result.times.loading, result.times.forward, result.times.nms) == (3.0, 3.0, 3.0)
    milliseconds = result.times.per_image_ms()
    assert milliseconds["total_ms"] == pytest.approx(milliseconds["forward_ms"] + milliseconds["nms_ms"])
    assert milliseconds["forward_ms"] == pytest.approx(300.0)
    assert "all 10 images" in time_line(result.times)


@pytest.mark.parametrize("world", [2, 3, 4])
def test_processes_get_exactly_the_single_process_figures(world: int) -> None:
    ids = list(range(1, 11))
    alone = run(ids)
    shares: list[Share] = []

    def keep(share: Share) -> list[Share]:
        shares.append(share)
        return [share]

    for rank in range(world):
        padded = ids[rank::world] + ids[: rank + 1]  # samplers pad, so some images are seen twice
        run(padded, gather=keep)
    together = [run(ids[rank::world], gather=lambda _: shares) for rank in range(world)]
    for result in together:
        assert dict(result.metrics) == dict(alone.metrics)
        assert result.coco.num_detections == alone.coco.num_detections
        assert result.times.num_images == sum(share.times.num_images for share in shares)


def test_images_the_loader_leaves_out_are_no_misses() -> None:
    result = run([1, 2, 3], num_images=10)
    assert result.num_missing == 7
    assert result.coco.num_images == 3
    assert result.metrics["AR100"] == pytest.approx(1.0)
    assert "7 images could not be read" in summary(result)
    assert run([1, 2, 3], num_images=3, miss=2).metrics["AR100"] < 1.0


def test_an_empty_loader_is_an_error() -> None:
    with pytest.raises(DataError, match="no image"):
        run([])


def test_json_is_plain_and_undefined_is_null() -> None:
    ground_truth = truth(3)
    ground_truth["annotations"] = []
    result = evaluate(Oracle(ground_truth), batches([1, 2, 3]), ground_truth, confidence=0.01, nms_iou=0.5)
    values = json.loads(json.dumps(result.as_json(), allow_nan=False))
    assert values["AP"] is None
    assert values["images"] == 3
    assert values["detections"] == 3
    assert values["forward_ms"] >= 0
    assert [row["AP"] for row in values["per_class"]] == [None, None]
    assert "No labels: the 3 images have no labelled object" in summary(result)


def test_the_twelve_lines_are_those_of_pycocotools(capsys: pytest.CaptureFixture[str]) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    result = run(list(range(1, 11)))
    ground_truth = truth(10)
    for number, row in enumerate(ground_truth["annotations"]):
        row.update(id=number + 1, iscrowd=0, area=row["bbox"][2] * row["bbox"][3])
    reference = COCO()
    reference.dataset = {**ground_truth, "info": {}}
    reference.createIndex()
    found = [
        {
            "image_id": image_id,
            "category_id": int(label) + 1,
            "bbox": [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()],
            "score": float(score),
        }
        for image_id, d in result.detections.items()
        for box, score, label in zip(d.boxes_xyxy, d.scores, d.labels, strict=True)
    ]
    evaluation = COCOeval(reference, reference.loadRes(found), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    capsys.readouterr()
    evaluation.summarize()
    assert coco_lines(result.coco) == capsys.readouterr().out.rstrip("\n")


def test_class_table_pads_the_last_row_and_marks_the_undefined() -> None:
    lines = class_table(["a", "bb", "c", "d"], [0.5, math.nan, 0.25, 1.0], "AP").splitlines()
    assert lines[1].split() == ["class", "AP"] * 3
    assert lines[3].split() == ["a", "50.000", "bb", "-", "c", "25.000"]
    assert lines[4].split() == ["d", "100.000"]
    assert "one" in summary(run([1, 2, 3]))
