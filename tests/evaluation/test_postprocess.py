from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from yolox.errors import UsageError
from yolox.evaluation.postprocess import nms_xyxy, postprocess, rescale
from yolox.structures import Detections, Size


def iou_xyxy(one: NDArray[np.float32], many: NDArray[np.float32]) -> NDArray[np.float64]:
    one, many = one.astype(np.float64), many.astype(np.float64)
    wh = np.minimum(one[2:], many[:, 2:]) - np.maximum(one[:2], many[:, :2])
    inter = np.maximum(wh, 0).prod(axis=1)
    return inter / ((one[2:] - one[:2]).prod() + (many[:, 2:] - many[:, :2]).prod(axis=1) - inter)


def slow_nms(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], labels: NDArray[np.int64] | None, threshold: float
) -> list[int]:
    """The definition: go from the best score down, keep what no better kept box of the class overlaps too much."""
    kept: list[int] = []
    for index in np.argsort(-scores, kind="stable"):
        rivals = [k for k in kept if labels is None or labels[k] == labels[index]]
        if not rivals or (iou_xyxy(boxes[index], boxes[rivals]) <= threshold).all():
            kept.append(int(index))
    return kept


def clustered(
    rng: np.random.Generator, count: int, objects: int = 30, classes: int = 5
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    centres, sizes = rng.uniform(0, 416, (objects, 2)), rng.uniform(20, 200, (objects, 2))
    of = rng.integers(0, objects, count)
    centre = centres[of] + rng.normal(0, 8, (count, 2))
    size = sizes[of] * np.exp(rng.normal(0, 0.2, (count, 2)))
    boxes = np.concatenate([centre - size / 2, centre + size / 2], axis=1).astype(np.float32)
    return boxes, rng.random(count).astype(np.float32) * 0.99 + 0.001, rng.integers(0, classes, count)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.65, 1.0])
@pytest.mark.parametrize("agnostic", [False, True])
def test_nms_of_many_boxes_equals_its_definition(threshold: float, agnostic: bool) -> None:
    boxes, scores, labels = clustered(np.random.default_rng(0), 1500)
    chosen = None if agnostic else labels
    assert nms_xyxy(boxes, scores, chosen, threshold).tolist() == slow_nms(boxes, scores, chosen, threshold)


WHOLE_BOX = st.tuples(*[st.integers(0, 30)] * 2, *[st.integers(1, 20)] * 2, st.integers(0, 2), st.integers(1, 6))
"""Left, top, width, height, class and sixths of the score: ties, equal boxes and overlaps at the threshold abound."""


@given(st.lists(WHOLE_BOX, max_size=25), st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.booleans(), st.randoms())
def test_laws_of_nms(rows: list[tuple[int, ...]], threshold: float, agnostic: bool, chance: random.Random) -> None:
    """It is its definition, idempotent, and knows no order but that of the scores."""
    left, top, width, height, classes, sixths = np.array(rows, np.int64).reshape(-1, 6).T
    boxes = np.stack([left, top, left + width, top + height], axis=1).astype(np.float32)
    scores, labels = (sixths / 6).astype(np.float32), None if agnostic else classes
    kept = nms_xyxy(boxes, scores, labels, threshold)
    assert kept.tolist() == slow_nms(boxes, scores, labels, threshold)
    of_kept = nms_xyxy(boxes[kept], scores[kept], None if labels is None else labels[kept], threshold)
    assert of_kept.tolist() == list(range(len(kept)))
    order, ranks = (np.array(chance.sample(range(len(rows)), len(rows)), np.int64) for _ in range(2))
    distinct = (ranks + 1).astype(np.float32)
    mixed = nms_xyxy(boxes[order], distinct[order], None if labels is None else labels[order], threshold)
    assert order[mixed].tolist() == nms_xyxy(boxes, distinct, labels, threshold).tolist()


def test_nms_keeps_order_of_equal_scores_and_equality_with_the_threshold() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 4.9]], np.float32)
    scores = np.array([0.5, 0.5, 0.5], np.float32)
    labels = np.zeros(3, np.int64)
    assert nms_xyxy(boxes, scores, labels, 0.5).tolist() == [0, 1]  # IoU 0.5 stays; the third lies in the second


def test_tiny_scores_survive() -> None:
    boxes = np.array([[0, 0, 10, 10], [20, 20, 30, 30]], np.float32)
    assert nms_xyxy(boxes, np.array([1e-9, 2e-9], np.float32), np.zeros(2, np.int64), 0.5).tolist() == [1, 0]


def test_batch_equals_single_images() -> None:
    rng = np.random.default_rng(3)
    boxes = np.stack([clustered(rng, 300)[0] for _ in range(3)])
    scores = rng.random((3, 300, 4)).astype(np.float32)
    together = postprocess(boxes, scores, confidence=0.3, nms_iou=0.65)
    assert len(together) == 3
    for index, detections in enumerate(together):
        (alone,) = postprocess(boxes[index : index + 1], scores[index : index + 1], confidence=0.3, nms_iou=0.65)
        for name in ("boxes_xyxy", "scores", "labels"):
            np.testing.assert_array_equal(getattr(detections, name), getattr(alone, name))


def test_best_class_confidence_and_order() -> None:
    boxes = np.array([[[0, 0, 10, 10], [20, 20, 40, 40], [50, 50, 60, 60]]], np.float32)
    scores = np.array([[[0.1, 0.3], [0.8, 0.2], [0.29, 0.0]]], np.float32)
    (found,) = postprocess(boxes, scores, confidence=0.3, nms_iou=0.65)
    np.testing.assert_array_equal(found.labels, [0, 1])
    np.testing.assert_array_equal(found.scores, np.array([0.8, 0.3], np.float32))
    np.testing.assert_array_equal(found.boxes_xyxy, boxes[0, [1, 0]])
    assert found.boxes_xyxy.dtype == found.scores.dtype == np.dtype(np.float32)
    assert found.labels.dtype == np.dtype(np.int64)


def test_classes_compete_only_when_agnostic() -> None:
    boxes = np.array([[[0, 0, 10, 10], [0, 0, 10, 9]]], np.float32)
    scores = np.array([[[0.9, 0.0], [0.0, 0.8]]], np.float32)
    assert len(postprocess(boxes, scores, confidence=0.1, nms_iou=0.5)[0].scores) == 2
    assert len(postprocess(boxes, scores, confidence=0.1, nms_iou=0.5, class_agnostic=True)[0].scores) == 1


def test_a_box_has_all_its_classes_on_request() -> None:
    boxes = np.array([[[0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60]]], np.float32)
    scores = np.array([[[0.9, 0.6, 0.1], [0.8, 0.7, 0.0], [0.0, 0.3, 0.0]]], np.float32)
    (found,) = postprocess(boxes, scores, confidence=0.3, nms_iou=0.5, multi_label=True)
    np.testing.assert_array_equal(found.scores, np.array([0.9, 0.7, 0.3], np.float32))
    np.testing.assert_array_equal(found.labels, [0, 1, 1])
    np.testing.assert_array_equal(found.boxes_xyxy, boxes[0])
    (best,) = postprocess(boxes, scores, confidence=0.3, nms_iou=0.5)
    np.testing.assert_array_equal(best.labels, [0, 1])


def test_the_classes_of_a_box_cannot_suppress_one_another() -> None:
    with pytest.raises(UsageError, match="Leave one out"):
        postprocess(
            np.zeros((1, 5, 4)),
            np.zeros((1, 5, 3)),
            confidence=0.1,
            nms_iou=0.5,
            class_agnostic=True,
            multi_label=True,
        )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_boxes_of_a_diverged_network_are_no_detections(bad: float) -> None:
    boxes = np.array([[[0, 0, bad, 10], [5, 5, 5, 9], [20, 20, 40, 40]]], np.float32)
    scores = np.array([[[0.9], [0.8], [0.7]]], np.float32)
    (found,) = postprocess(boxes, scores, confidence=0.0, nms_iou=0.65)
    np.testing.assert_array_equal(found.boxes_xyxy, [[20, 20, 40, 40]])


def test_scores_that_are_not_numbers_are_no_detections() -> None:
    (found,) = postprocess(np.ones((1, 2, 4)), np.full((1, 2, 3), np.nan), confidence=0.0, nms_iou=0.65)
    assert len(found.scores) == 0


def test_nothing_found() -> None:
    (found,) = postprocess(np.zeros((1, 5, 4)), np.zeros((1, 5, 3)), confidence=0.01, nms_iou=0.65)
    assert found.boxes_xyxy.shape == (0, 4)
    assert found.scores.shape == found.labels.shape == (0,)
    assert postprocess(np.zeros((0, 5, 4)), np.zeros((0, 5, 3)), confidence=0.01, nms_iou=0.65) == []


def test_arguments_stay_as_they_are() -> None:
    boxes, scores, _ = clustered(np.random.default_rng(0), 50)
    given = boxes[None].copy(), scores[None, :, None].copy()
    (found,) = postprocess(given[0], given[1], confidence=0.1, nms_iou=0.65)
    rescale(found, Size(100, 100), Size(50, 50))
    np.testing.assert_array_equal(given[0][0], boxes)
    np.testing.assert_array_equal(given[1][0, :, 0], scores)


@pytest.mark.parametrize(("confidence", "iou"), [(1.5, 0.5), (0.5, -0.1), (float("nan"), 0.5)])
def test_thresholds_are_checked(confidence: float, iou: float) -> None:
    with pytest.raises(UsageError, match="expected a value from 0 to 1"):
        postprocess(np.zeros((1, 5, 4)), np.zeros((1, 5, 3)), confidence=confidence, nms_iou=iou)


def test_shapes_are_checked() -> None:
    with pytest.raises(UsageError, match=r"expected \[B, A, 4\]"):
        postprocess(np.zeros((5, 4)), np.zeros((5, 3)), confidence=0.1, nms_iou=0.5)


def test_rescale_divides_by_the_letterbox_ratio() -> None:
    found = Detections(np.array([[0, 6.5, 65, 416]], np.float32), np.ones(1, np.float32), np.zeros(1, np.int64))
    np.testing.assert_allclose(
        rescale(found, Size(480, 640), Size(416, 416)).boxes_xyxy, [[0, 10, 100, 640]], rtol=1e-6
    )


def test_importable_without_torch() -> None:
    code = "import sys, yolox.evaluation.postprocess; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
