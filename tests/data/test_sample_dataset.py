from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from yolox.data import sample_dataset
from yolox.data.sample_dataset import CLASS_NAMES, draw_image, draw_sample_set, sample_set_dir
from yolox.errors import DataError


def test_the_same_on_every_call(tmp_path: Path) -> None:
    for name in ("a", "b"):
        draw_sample_set(tmp_path / name, 3, 2)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) == 7
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_objects_are_what_the_boxes_say() -> None:
    drawn = [draw_image(np.random.default_rng(seed)) for seed in range(60)]
    sizes = {image.shape for image, _ in drawn}
    counts = [len(objects) for _, objects in drawn]
    labels = {label for _, objects in drawn for label, _ in objects}
    boxes = np.array([box for _, objects in drawn for _, box in objects])
    assert len(sizes) > 40
    assert labels == set(range(len(CLASS_NAMES)))
    assert min(counts) == 0
    assert max(counts) >= 5
    assert (np.sqrt(boxes[:, 2] * boxes[:, 3]) >= 24).mean() > 0.95
    assert boxes[:, 2:].max() > 120
    cut = 0
    for image, objects in drawn:
        for _, (x, y, width, height) in objects:
            assert 0 <= x < x + width <= image.shape[1]
            assert 0 <= y < y + height <= image.shape[0]
            cut += x == 0 or y == 0 or x + width == image.shape[1] or y + height == image.shape[0]
    assert cut > 5


def test_some_objects_overlap() -> None:
    overlaps = 0
    for seed in range(30):
        _, objects = draw_image(np.random.default_rng(seed))
        for i, (_, (x, y, width, height)) in enumerate(objects):
            for _, (u, v, other_width, other_height) in objects[:i]:
                overlaps += x < u + other_width and u < x + width and y < v + other_height and v < y + height
    assert overlaps > 5


def test_drawn_once_and_whole_or_absent(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_dataset, "NUM_TRAIN", 2)
    monkeypatch.setattr(sample_dataset, "NUM_VAL", 1)
    folder = sample_set_dir()
    content = json.loads((folder / "annotations" / "instances_train2017.json").read_text())
    image = content["images"][0]
    assert cv2.imread(str(folder / "train2017" / image["file_name"])).shape[:2] == (image["height"], image["width"])
    assert [path.name for path in cache_folder.iterdir()] == [folder.name]
    monkeypatch.setattr(sample_dataset, "draw_sample_set", lambda *_: pytest.fail("drawn again"))
    assert sample_set_dir() == folder


def test_a_failure_leaves_nothing_behind(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sample_dataset, "draw_sample_set", fail)
    with pytest.raises(DataError, match="No space left"):
        sample_set_dir()
    assert not list(cache_folder.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="paths")
def test_a_cache_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("YOLOX_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(DataError, match="Set YOLOX_CACHE"):
        sample_set_dir()
