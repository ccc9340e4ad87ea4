"""The one output of exported detectors as boxes and scores: told by the metadata, else by the numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from yolox.errors import ModelFileError
from yolox.prediction.official_output import boxes_and_scores
from yolox.structures import OUTPUT_DESCRIPTIONS, Size

SIZE = Size(64, 32)
NUM_POINTS = 8 * 4 + 4 * 2 + 2 * 1
FILE = Path("model.onnx")


def same_box_everywhere(centre: tuple[float, float], sides: tuple[float, float]) -> NDArray[np.float32]:
    """Return an output ``[1, A, 7]`` in which each anchor point predicts one box with scores 0.5 x (0.5, 1)."""
    return np.tile(np.array([*centre, *sides, 0.5, 0.5, 1], np.float32), (1, NUM_POINTS, 1))


def test_boxes_that_are_all_alike_are_read_as_the_metadata_says() -> None:
    """Without a spread the numbers do not tell pixels from the grid."""
    boxes, scores = boxes_and_scores([same_box_everywhere((16, 20), (8, 4))], SIZE, FILE, OUTPUT_DESCRIPTIONS["pixels"])
    assert (boxes == np.array([12, 18, 20, 22])).all()
    assert (scores == np.array([0.25, 0.5])).all()
    output = same_box_everywhere((0.5, 0.5), (0, np.log(2)))
    boxes, _ = boxes_and_scores([output], SIZE, FILE, OUTPUT_DESCRIPTIONS["grid"])
    assert boxes[0, 0] == pytest.approx([0, -4, 8, 12])  # stride 8, first cell
    assert boxes[0, -1] == pytest.approx([0, 32 + 16 - 32, 32, 32 + 16 + 32])  # stride 32, second row


def test_centres_over_the_whole_input_are_pixels_without_metadata() -> None:
    output = same_box_everywhere((0, 0), (8, 4))
    output[0, :, :2] = np.random.default_rng(0).uniform((0, 0), (SIZE.width, SIZE.height), (NUM_POINTS, 2))
    for description in ("", OUTPUT_DESCRIPTIONS["pixels"]):
        boxes, _ = boxes_and_scores([output], SIZE, FILE, description)
        assert np.allclose(boxes[..., 2:] - boxes[..., :2], [8, 4], atol=1e-5)


def test_an_objectness_of_one_is_no_yolox() -> None:
    output = same_box_everywhere((16, 20), (8, 4))
    output[..., 4] = 1
    with pytest.raises(ModelFileError, match="YOLOv6"):
        boxes_and_scores([output], SIZE, FILE)
