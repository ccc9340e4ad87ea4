"""Matches at IoU 0.5: hand-counted cases, and the AP50 that follows from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from random_detections import synthetic

from yolox.evaluation.coco_metric import coco_metric
from yolox.evaluation.matching import confusion_matrix, match_objects, score_curves
from yolox.structures import Detections

NAMES = ("cat", "dog", "owl")


def box(left: float, label: int, **more: Any) -> tuple[list[float], int, dict[str, Any]]:
    """A box of 10 x 10 pixels."""
    return [left, 0.0, 10.0, 10.0], label, more


def truth_of(*images: list[tuple[list[float], int, dict[str, Any]]]) -> dict[str, Any]:
    annotations = [
        {"image_id": number, "bbox": place, "category_id": label + 1, **more}
        for number, objects in enumerate(images, start=1)
        for place, label, more in objects
    ]
    return {
        "images": [{"id": number} for number in range(1, len(images) + 1)],
        "categories": [{"id": index + 1, "name": name} for index, name in enumerate(NAMES)],
        "annotations": annotations,
    }


def found(*rows: tuple[float, float, int]) -> Detections:
    """Detections of 10 x 10 pixels from left edge, score and class."""
    boxes = np.array([[left, 0, left + 10, 10] for left, _, _ in rows], np.float32).reshape(-1, 4)
    scores = np.array([score for _, score, _ in rows], np.float32)
    return Detections(boxes, scores, np.array([label for _, _, label in rows], np.int64))


@pytest.fixture
def planted() -> tuple[dict[str, Any], dict[int, Detections]]:
    """Image 1: two cats, a dog, a crowd of owls. Image 2: a dog. Image 3: nothing."""
    truth = truth_of([box(0, 0), box(50, 0), box(100, 1), ([200, 0, 100, 10], 2, {"iscrowd": 1})], [box(0, 1)], [])
    detections = {
        1: found(
            (1, 0.9, 0),  # the first cat: found
            (0, 0.8, 0),  # the same cat again, and better placed: too late
            (50, 0.7, 1),  # the second cat: called a dog
            (101, 0.6, 1),  # the dog: found
            (100, 0.95, 0),  # the dog called a cat, while a dog was found there: nothing is labelled a cat here
            (210, 0.9, 2),  # in the crowd: does not count
            (500, 0.4, 2),  # nothing is there
        ),
        2: found((7, 0.9, 1)),  # overlaps by 3 of 17: not the dog
        3: found((0, 0.3, 0)),
    }
    return truth, detections


def test_confusion_matrix_of_a_planted_set(planted: tuple[dict[str, Any], dict[int, Detections]]) -> None:
    matches = match_objects(*planted)
    expected = [
        # cat dog owl missed
        [1, 1, 0, 0],  # cat
        [0, 1, 0, 1],  # dog
        [0, 0, 0, 0],  # owl
        [3, 1, 1, 0],  # nothing labelled
    ]
    assert confusion_matrix(matches, 3, 0.0).tolist() == expected
    # from 0.65 on the dog of image 1 is found by nobody else than the cat, which now is the confusion
    assert confusion_matrix(matches, 3, 0.65).tolist() == [[1, 1, 0, 0], [1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 0, 0]]
    assert confusion_matrix(matches, 3, 0.99).tolist() == [[0, 0, 0, 2], [0, 0, 0, 2], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_precision_recall_and_f1_of_a_planted_set(planted: tuple[dict[str, Any], dict[int, Detections]]) -> None:
    curves = score_curves(match_objects(*planted), 3)
    at = {round(float(value), 3): index for index, value in enumerate(curves.thresholds)}
    assert curves.precision[:2, at[0.0]] == pytest.approx([1 / 4, 1 / 3])
    assert curves.recall[:2, at[0.0]] == pytest.approx([1 / 2, 1 / 2])
    assert curves.f1[:2, at[0.0]] == pytest.approx([2 / (4 + 2), 2 / (3 + 2)])
    assert curves.precision[:, at[0.85]] == pytest.approx([1 / 2, 0, np.nan], nan_ok=True)
    assert np.isnan(curves.recall[2]).all()  # no owl counts
    assert curves.mean_precision[at[0.0]] == pytest.approx((1 / 4 + 1 / 3) / 2)
    assert curves.mean_recall[at[0.0]] == pytest.approx(1 / 2)
    assert curves.best == at[0.301]  # without the false cat of 0.3 the cats have F1 2 / 5, the dogs still 2 / 5


def test_a_score_equal_to_the_threshold_counts() -> None:
    curves = score_curves(match_objects(truth_of([box(0, 0)]), {1: found((0, 0.6, 0))}), 3)
    assert curves.best == 0
    assert curves.recall[0, 600] == 1
    assert curves.recall[0, 601] == 0
    assert confusion_matrix(match_objects(truth_of([box(0, 0)]), {1: found((0, 0.6, 0))}), 3, 0.6)[0, 0] == 1


def test_nothing_found_has_no_best_threshold() -> None:
    matches = match_objects(truth_of([box(0, 0)]), {})
    curves = score_curves(matches, 3)
    assert curves.best is None
    assert np.isnan(curves.mean_precision).all()
    assert confusion_matrix(matches, 3, 0.5)[0].tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("seed", range(6))
def test_the_matches_are_those_of_the_evaluator(seed: int) -> None:
    """AP50 computed from the matches by COCO's interpolation is the evaluator's, class by class, crowds included."""
    truth, detections = synthetic(seed)
    result = coco_metric(truth, detections)
    matches = match_objects(truth, detections)
    for index, row in enumerate(result.per_class):
        scores = np.concatenate([part.scores[part.labels == index] for part in matches])
        right = np.concatenate([part.objects[part.labels == index] >= 0 for part in matches])
        right = right[np.argsort(-scores, kind="stable")]
        recall = np.cumsum(right) / row.num_objects
        precision = np.cumsum(right) / np.arange(1, len(right) + 1)
        falling = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
        interpolated = falling[np.searchsorted(recall, np.linspace(0, 1, 101))]
        np.testing.assert_allclose(result.precision50[index], interpolated, atol=1e-9)
        assert row.ap50 == pytest.approx(interpolated.mean())
    assert result.metrics["AP50"] == pytest.approx(np.mean([row.ap50 for row in result.per_class]))


@pytest.mark.parametrize("seed", range(3))
def test_matrix_and_curves_agree(seed: int) -> None:
    truth, detections = synthetic(seed)
    matches = match_objects(truth, detections)
    curves = score_curves(matches, 3)
    for step in (0, 300, 800):
        matrix = confusion_matrix(matches, 3, float(curves.thresholds[step]))
        right = np.diag(matrix)[:3]
        np.testing.assert_allclose(right / matrix.sum(axis=1)[:3], curves.recall[:, step])
        np.testing.assert_allclose(right / matrix.sum(axis=0)[:3], curves.precision[:, step])
