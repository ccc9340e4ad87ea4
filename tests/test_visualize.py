from __future__ import annotations

import numpy as np
import pytest

from yolox.structures import Detections
from yolox.visualize import color_of, draw_detections


def detections(boxes: list[list[float]], labels: list[int] | None = None) -> Detections:
    count = len(boxes)
    chosen = np.array(labels if labels is not None else range(count), np.int64)
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4), np.linspace(0.9, 0.3, count, dtype=np.float32), chosen
    )


def test_draws_on_a_copy_in_the_color_of_the_class() -> None:
    image = np.full((200, 300, 3), 90, np.uint8)
    picture = draw_detections(image, detections([[50, 60, 150, 160]], [3]), ["a", "b", "c", "d"])
    assert (image == 90).all()
    assert picture.shape == image.shape
    np.testing.assert_array_equal(picture[120, 50], color_of(3))
    np.testing.assert_array_equal(picture[160, 100], color_of(3))
    assert (picture[90:150, 60:140] == 90).all()  # the object itself stays visible


@pytest.mark.parametrize(
    "box", [[-50, -40, 900, 700], [0, 0, 3, 3], [295, 195, 299, 199], [1e6, 1e6, 2e6, 2e6], [10, 10, 10, 10]]
)
def test_boxes_beyond_the_image_and_tiny_images(box: list[float]) -> None:
    for shape in ((200, 300, 3), (1, 1, 3), (8, 2000, 3)):
        picture = draw_detections(np.zeros(shape, np.uint8), detections([box], [500]), [])
        assert picture.shape == shape
        assert picture.any()


def test_low_scores_are_left_out_and_nothing_changes_nothing() -> None:
    image = np.zeros((50, 50, 3), np.uint8)
    assert not draw_detections(image, detections([]), ["a"]).any()
    assert not draw_detections(image, detections([[5, 5, 40, 40]]), ["a"], lowest_score=0.95).any()


def test_better_detections_lie_on_top() -> None:
    image = np.zeros((100, 100, 3), np.uint8)
    picture = draw_detections(image, detections([[10, 30, 90, 90], [10, 30, 90, 90]], [0, 1]), ["a", "b"])
    np.testing.assert_array_equal(picture[70, 10], color_of(0))


def test_no_box_crosses_a_name() -> None:
    """The best box runs through the place of the other one's name."""
    image = np.zeros((100, 200, 3), np.uint8)
    boxes = [[60.0, 20.0, 190.0, 90.0], [40.0, 40.0, 150.0, 95.0]]
    alone = draw_detections(image, detections([boxes[0], boxes[1]], [0, 1]), ["a", "bbbbbbb"], lowest_score=0.5)
    both = draw_detections(image, detections([boxes[0], boxes[1]], [0, 1]), ["a", "bbbbbbb"])
    np.testing.assert_array_equal(alone[32, 60], color_of(0))
    assert (both[32, 60] != color_of(0)).any()


def test_names_cover_no_others_where_there_is_room() -> None:
    """Boxes with one upper edge: the second name goes inside, the third below, the fourth to the bottom."""
    image = np.zeros((200, 300, 3), np.uint8)
    found = detections([[50.0, 60.0, 150.0, 160.0]] * 4, [0, 1, 2, 3])
    picture = draw_detections(image, found, ["a", "b", "c", "d"], show_scores=False)
    for label, row in enumerate((57, 72, 173, 158)):
        np.testing.assert_array_equal(picture[row, 51], color_of(label))


def test_colors_are_distinct() -> None:
    colors = [color_of(label) for label in range(80)]
    assert len(set(colors)) == 80
    assert colors == [color_of(label) for label in range(80)]
    near = min(np.abs(np.subtract(colors[k], colors[k + 1])).sum() for k in range(79))
    assert near > 150
