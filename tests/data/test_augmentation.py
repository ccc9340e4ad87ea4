"""Laws of mosaic, MixUp and the last transforms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolox.data.image_ops import FILL, letterbox
from yolox.data.mosaic import Affine, mix_up, mosaic, mosaic_centre, visible_places, warp
from yolox.data.transforms import TrainTransform, collate, flip, letterbox_sample
from yolox.structures import Sample, Size

TARGET = Size(64, 96)
CENTRE = (60, 80)


def sample(seed: int, num_objects: int = 3, size: Size = TARGET) -> Sample:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 0.5, (num_objects, 2)) * (size.width, size.height)
    extent = rng.uniform(0.1, 0.5, (num_objects, 2)) * (size.width, size.height)
    boxes = np.concatenate([corner, corner + extent], axis=1).astype(np.float32)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    return Sample(image, boxes, rng.integers(0, 5, num_objects), seed, size)


def inside(boxes: np.ndarray, size: Size) -> bool:
    return bool(
        (boxes >= 0).all() and (boxes[:, [0, 2]] <= size.width).all() and (boxes[:, [1, 3]] <= size.height).all()
    )


FITTED = st.builds(Size, st.integers(1, TARGET.height), st.integers(1, TARGET.width))
SAMPLES = st.builds(sample, st.integers(0, 2**32), st.integers(0, 4), FITTED)


@given(st.lists(SAMPLES, min_size=4, max_size=4), st.integers(0, 2**32))
def test_mosaic_boxes_lie_on_the_canvas_and_over_their_pixels(parts: list[Sample], seed: int) -> None:
    for part in parts:
        part.image[:] = 0
        for box in part.boxes_xyxy.astype(int):
            part.image[box[1] : box[3] + 1, box[0] : box[2] + 1] = 255
    whole = mosaic(parts, TARGET, mosaic_centre(TARGET, np.random.default_rng(seed)))
    canvas = Size(2 * TARGET.height, 2 * TARGET.width)
    assert whole.image.shape == (*canvas, 3)
    assert whole.image_id == parts[0].image_id
    assert inside(whole.boxes_xyxy, canvas)
    for left, top, right, bottom in whole.boxes_xyxy.astype(int):
        patch = whole.image[top + 1 : max(top + 1, bottom - 1), left + 1 : max(left + 1, right - 1)]
        assert (patch == 255).all()


def test_mosaic_of_empty_images() -> None:
    whole = mosaic([sample(i, 0) for i in range(4)], TARGET, CENTRE)
    assert whole.boxes_xyxy.shape == (0, 4)
    assert (whole.image == FILL).any()


@given(SAMPLES, st.integers(0, 2**32), st.floats(0, 180), st.floats(0.01, 3))
def test_affine_keeps_boxes_inside_and_labels_with_them(plain: Sample, seed: int, degrees: float, scale: float) -> None:
    affine = Affine(degrees=degrees, scales=(scale, 2 * scale))
    moved = warp(plain, TARGET, affine.draw(TARGET, np.random.default_rng(seed)))
    assert moved.image.shape == (*TARGET, 3)
    assert inside(moved.boxes_xyxy, TARGET)
    assert len(moved.labels) == len(moved.boxes_xyxy) <= len(plain.labels)


@pytest.mark.parametrize("scales", [(0.1, 2.0), (0.5, 1.5)])
def test_places_called_invisible_change_nothing(scales: tuple[float, float]) -> None:
    num_hidden = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        parts = [sample(4 * seed + i, size=Size(64, 80) if i % 2 else Size(50, 96)) for i in range(4)]
        centre, matrix = mosaic_centre(TARGET, rng), Affine(scales=scales).draw(TARGET, rng)
        shown = visible_places([Size(*part.image.shape[:2]) for part in parts], centre, matrix, TARGET)
        others = [
            part
            if seen
            else replace(part, image=255 - part.image, boxes_xyxy=part.boxes_xyxy[:1], labels=part.labels[:1])
            for part, seen in zip(parts, shown, strict=True)
        ]
        first, second = (warp(mosaic(four, TARGET, centre), TARGET, matrix) for four in (parts, others))
        np.testing.assert_array_equal(first.image, second.image)
        np.testing.assert_array_equal(first.boxes_xyxy, second.boxes_xyxy)
        np.testing.assert_array_equal(first.labels, second.labels)
        num_hidden += 4 - sum(shown)
    assert num_hidden > 200  # of 800


@pytest.mark.parametrize("scales", [(0.5, 0.5), (1.0, 1.0), (1.5, 1.5)])
def test_mixup_is_the_truncated_mean_and_adds_objects_last(scales: tuple[float, float]) -> None:
    first, second = sample(1), sample(2, 2, Size(40, 60))
    for seed in range(10):
        mixed = mix_up(first, second, scales, np.random.default_rng(seed))
        np.testing.assert_array_equal(mixed.boxes_xyxy[:3], first.boxes_xyxy)
        assert mixed.labels[:3].tolist() == first.labels.tolist()
        assert inside(mixed.boxes_xyxy[3:], TARGET)
        assert len(mixed.labels) == len(mixed.boxes_xyxy)
    full = mix_up(first, first, (1.0, 1.0), np.random.default_rng(1))
    either = [first.image, flip(first).image]
    expected = [((first.image.astype(int) + other) // 2).astype(np.uint8) for other in either]
    assert any((full.image == image).all() for image in expected)


def test_mixup_darkens_where_the_partner_ends() -> None:
    first = sample(1)
    mixed = mix_up(first, sample(2), (0.5, 0.5), np.random.default_rng(0))
    np.testing.assert_array_equal(mixed.image[40:], first.image[40:] // 2)


def test_transforms_change_no_argument() -> None:
    parts = [sample(i) for i in range(4)]
    copies = [replace(part, image=part.image.copy(), boxes_xyxy=part.boxes_xyxy.copy()) for part in parts]
    rng = np.random.default_rng(0)
    whole = warp(mosaic(parts, TARGET, mosaic_centre(TARGET, rng)), TARGET, Affine().draw(TARGET, rng))
    TrainTransform(TARGET)(mix_up(parts[0], parts[1], (0.5, 1.5), rng), rng)
    TrainTransform(TARGET)(whole, rng)
    for part, copy in zip(parts, copies, strict=True):
        np.testing.assert_array_equal(part.image, copy.image)
        np.testing.assert_array_equal(part.boxes_xyxy, copy.boxes_xyxy)


def test_train_transform_without_chance_is_the_letterbox() -> None:
    plain = sample(5, size=Size(100, 70))
    out = TrainTransform(TARGET, hsv_prob=0, flip_prob=0)(plain, np.random.default_rng(0))
    image, ratio = letterbox(plain.image, TARGET)
    np.testing.assert_array_equal(out.image, image)
    np.testing.assert_allclose(out.boxes_xyxy, plain.boxes_xyxy * ratio, rtol=1e-6)


def test_flip_twice_gives_the_sample_back() -> None:
    plain = sample(6)
    twice = flip(flip(plain))
    np.testing.assert_array_equal(twice.image, plain.image)
    np.testing.assert_allclose(twice.boxes_xyxy, plain.boxes_xyxy, atol=1e-4)


def test_tiny_boxes_go_and_the_first_120_stay() -> None:
    boxes = np.tile(np.array([[5, 5, 20, 20]], np.float32), (150, 1))
    boxes[::2, 2] = 5.5
    many = replace(sample(1), boxes_xyxy=boxes, labels=np.arange(150))
    out = TrainTransform(TARGET, max_labels=60)(many, np.random.default_rng(0))
    assert out.labels.tolist() == list(range(1, 120, 2))


def test_only_tiny_boxes_give_the_plain_image_back() -> None:
    tiny = replace(sample(1), boxes_xyxy=np.array([[5, 5, 5.5, 6], [7, 7, 7, 7]], np.float32), labels=np.array([3, 4]))
    out = TrainTransform(TARGET, flip_prob=1)(tiny, np.random.default_rng(0))
    np.testing.assert_array_equal(out.image, tiny.image)
    assert out.labels.tolist() == [3]


def test_collate_pads_to_the_largest_number_of_objects() -> None:
    batch = collate([letterbox_sample(sample(i, n), TARGET) for i, n in enumerate((2, 0, 5))])
    assert batch.images.shape == (3, 3, *TARGET)
    assert batch.images.permute(0, 2, 3, 1).is_contiguous()
    assert batch.targets.boxes_cxcywh.shape == (3, 5, 4)
    assert batch.targets.valid.sum(1).tolist() == [2, 0, 5]
    assert batch.image_ids.tolist() == [0, 1, 2]
    assert batch.original_sizes.tolist() == [list(TARGET)] * 3
    assert (batch.targets.boxes_cxcywh[0, 2:] == 0).all()


def test_collate_without_any_object() -> None:
    batch = collate([sample(0, 0), sample(1, 0)])
    assert batch.targets.boxes_cxcywh.shape == (2, 0, 4)
    assert batch.targets.valid.shape == (2, 0)
