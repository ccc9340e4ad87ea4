"""Reading ahead and writing behind: order, bounds, errors."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from yolox.prediction.background import read_ahead, write_behind
from yolox.prediction.models import Predictor
from yolox.prediction.run import Thresholds, predict
from yolox.prediction.sources import Sources
from yolox.structures import Size


def test_items_come_in_order_and_few_are_made_ahead() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            made.append(number)
            yield number

    reading = read_ahead(items(), 3)
    taken = []
    for number in reading:
        taken.append(number)
        assert len(made) <= number + 1 + 3
    assert taken == list(range(20))


def test_items_are_made_while_nobody_asks() -> None:
    second = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        second.set()
        yield 2

    reading = read_ahead(items(), 2)
    assert next(reading) == 1
    assert second.wait(10)
    assert list(reading) == [2]


def test_an_error_comes_where_its_item_would_have() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("no second one")

    reading = read_ahead(items(), 4)
    assert next(reading) == 1
    with pytest.raises(ValueError, match="no second one"):
        next(reading)


def test_all_that_was_yielded_is_written_in_order() -> None:
    written: list[int] = []
    assert list(write_behind(range(9), written.append, 2)) == written == list(range(9))
    stopped = write_behind(range(9), written.append, 4)
    assert [next(stopped), next(stopped)] == [0, 1]
    stopped.close()
    assert written[9:] == [0, 1]


def test_what_cannot_be_written_is_told() -> None:
    def write(number: int) -> None:
        if number == 3:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        list(write_behind(range(9), write, 2))
    with pytest.raises(OSError, match="disk full"):
        list(write_behind(range(4), write, 8))


@pytest.mark.parametrize(("batch_size", "expected"), [(None, [8, 3]), (4, [4, 4, 3]), (1, [1] * 11)])
def test_batches_of_a_deployed_model(tmp_path: Path, batch_size: int | None, expected: list[int]) -> None:
    for number in range(11):
        assert cv2.imwrite(str(tmp_path / f"{number:02d}.png"), np.full((20 + number, 40, 3), 20 * number, np.uint8))
    sizes = []

    def network(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sizes.append(len(images))
        assert images.shape[1:] == (3, 32, 32)
        assert images.dtype == np.uint8
        boxes = np.tile(np.array([[[0, 0, 16, 8]]], np.float32), (len(images), 1, 1))
        return boxes, images[:, 0, 0, :1, None].astype(np.float32) / 255

    predictor = Predictor(network, Size(32, 32), ("dark",), "a test", "test", "native_int8")
    results = list(predict(predictor, Sources(tmp_path), Thresholds(confidence=0.0), batch_size))
    assert sizes == expected
    assert [result.name for result in results] == [f"{number:02d}.png" for number in range(11)]
    for number, result in enumerate(results[1:], 1):
        assert result.boxes.scores == pytest.approx([20 * number / 255])
        assert result.boxes.xyxy.tolist() == [[0, 0, 20, 10]]
