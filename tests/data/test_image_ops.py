from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolox.data.image_ops import (
    FILL,
    affine_matrix,
    clip_boxes,
    fit_ratio,
    fitted_size,
    flip_boxes,
    jitter_hsv,
    letterbox,
    warp_affine,
    warp_boxes,
    xyxy_to_cxcywh,
)
from yolox.evaluation.postprocess import rescale
from yolox.structures import Detections, Size

EDGES = st.integers(1, 700)
SIZES = st.builds(Size, EDGES, EDGES)


def picture(size: Size, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [Size(480, 640), Size(640, 425), Size(3, 1000), Size(416, 416), Size(100, 57)])
def test_letterbox_stands_top_left_on_grey(size: Size) -> None:
    target = Size(416, 416)
    image, ratio = letterbox(picture(size), target)
    inner = fitted_size(size, target)
    assert image.shape == (416, 416, 3)
    assert inner == (max(1, int(size.height * ratio)), max(1, int(size.width * ratio)))
    assert (image[inner.height :] == FILL).all()
    assert (image[:, inner.width :] == FILL).all()
    np.testing.assert_array_equal(
        image[: inner.height, : inner.width], cv2.resize(picture(size), (inner.width, inner.height))
    )


@given(SIZES, SIZES, st.lists(st.tuples(*[st.floats(0, 1)] * 4), max_size=5))
def test_boxes_come_back_from_the_letterbox(size: Size, target: Size, corners: list[tuple[float, ...]]) -> None:
    boxes = np.array(corners, np.float32).reshape(-1, 4) * np.array([size.width, size.height] * 2, np.float32)
    ratio = np.float32(fit_ratio(size, target))
    found = Detections(boxes * ratio, np.ones(len(boxes), np.float32), np.zeros(len(boxes), np.int64))
    np.testing.assert_allclose(rescale(found, size, target).boxes_xyxy, boxes, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(clip_boxes(boxes * ratio, target), boxes * ratio, rtol=1e-5, atol=1e-6)
    inner = fitted_size(size, target)
    assert 1 <= inner.height <= target.height
    assert 1 <= inner.width <= target.width


def test_a_second_letterbox_changes_nothing() -> None:
    once, _ = letterbox(picture(Size(100, 57)), Size(64, 64))
    twice, ratio = letterbox(once, Size(64, 64))
    assert ratio == 1
    np.testing.assert_array_equal(once, twice)


@given(st.integers(1, 2000), st.lists(st.tuples(*[st.integers(0, 2000)] * 4), max_size=5))
def test_flip_twice_is_the_identity(width: int, boxes: list[tuple[int, ...]]) -> None:
    whole = np.array(boxes, np.float32).reshape(-1, 4)
    once = flip_boxes(whole, width)
    np.testing.assert_array_equal(once[:, [1, 3]], whole[:, [1, 3]])
    np.testing.assert_array_equal(once[:, 2] - once[:, 0], whole[:, 2] - whole[:, 0])
    np.testing.assert_array_equal(flip_boxes(once, width), whole)


def test_hsv_equals_the_plain_formula() -> None:
    image = picture(Size(20, 30))
    for seed in range(40):
        rng = np.random.default_rng(seed)
        gains = (rng.uniform(-1, 1, 3) * (5, 30, 30) * rng.integers(0, 2, 3)).astype(np.int16)
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV).astype(np.int16) + gains
        hsv[..., 0] %= 180
        hsv[..., 1:] = hsv[..., 1:].clip(0, 255)
        expected = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2BGR) if gains.any() else image
        before = image.copy()
        np.testing.assert_array_equal(jitter_hsv(image, np.random.default_rng(seed)), expected)
        np.testing.assert_array_equal(image, before)


def test_affine_turns_about_the_origin() -> None:
    target = Size(100, 200)
    for seed in range(20):
        matrix = affine_matrix(
            target, np.random.default_rng(seed), degrees=30, translate=0.1, scales=(0.5, 1.5), shear=2
        )
        # the origin moves by the shift alone, a tenth of the target at most
        assert abs(matrix[0, 2]) <= 20
        assert abs(matrix[1, 2]) <= 10
        still = affine_matrix(target, np.random.default_rng(seed), degrees=0, translate=0, scales=(2, 2), shear=0)
        np.testing.assert_allclose(still, [[2, 0, 0], [0, 2, 0]])


def test_affine_rotation_follows_opencv() -> None:
    rng = np.random.default_rng(3)
    angle = np.random.default_rng(3).uniform(-10, 10)
    matrix = affine_matrix(Size(10, 10), rng, degrees=10, translate=0, scales=(1.5, 1.5), shear=0)
    np.testing.assert_allclose(matrix, cv2.getRotationMatrix2D((0, 0), angle, 1.5), atol=1e-12)


def test_warped_boxes_hold_the_warped_object() -> None:
    image = np.zeros((100, 100, 3), np.uint8)
    image[20:40, 30:60] = 255
    boxes = np.array([[30, 20, 60, 40]], np.float32)
    matrix = affine_matrix(Size(80, 90), np.random.default_rng(1), degrees=10, translate=0.1, scales=(0.9, 1), shear=2)
    warped = warp_affine(image, matrix, Size(80, 90))
    assert warped.shape == (80, 90, 3)
    rows, columns = np.nonzero(warped[..., 0] > 200)
    left, top, right, bottom = warp_boxes(boxes, matrix, Size(80, 90))[0]
    assert left - 1 <= columns.min() <= left + 8
    assert right + 1 >= columns.max() >= right - 8
    assert top - 1 <= rows.min()
    assert bottom + 1 >= rows.max()


def test_cxcywh() -> None:
    boxes = xyxy_to_cxcywh(np.array([[10, 20, 30, 60]], np.float32))
    np.testing.assert_array_equal(boxes, [[20, 40, 20, 40]])
