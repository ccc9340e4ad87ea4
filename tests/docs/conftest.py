"""A folder with what the pages name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from doc_shell import SHORTER, place_weights

from yolox.data.sample_dataset import draw_sample_set
from yolox.tools import command


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Data, weights, a run, a deployed model, pictures and a film, under the names that the pages use."""
    folder = tmp_path_factory.mktemp("pages")
    work = folder / "work"
    work.mkdir()
    draw_sample_set(work / "mine", num_train=8, num_val=2)
    for name in ("DATA", "my_data"):
        (work / name).symlink_to("mine")
    labels = json.loads((work / "mine" / "annotations" / "instances_val2017.json").read_text())
    found = [
        {key: row[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.5} for row in labels["annotations"]
    ]
    (work / "detections.json").write_text(json.dumps(found))
    (work / "images").mkdir()
    picture = next((work / "mine" / "val2017").iterdir())
    for name in ("street.jpg", "images/a.jpg", "images/b.jpg"):
        shutil.copy(picture, work / name)
    film = cv2.VideoWriter(str(work / "film.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (80, 60))
    for shade in (90, 120):
        film.write(np.full((60, 80, 3), shade, np.uint8))
    film.release()
    place_weights(folder / "cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("YOLOX_CACHE", str(folder / "cache"))
        patch.chdir(work)
        words = "train -n yolox_nano --data_dir mine --logger none"
        assert command.main([*words.split(), *SHORTER["train"]]) == 0
        best = work / "YOLOX_outputs" / "yolox_nano" / "best_ckpt.pth"
        for name in ("best_ckpt.pth", "model.pth", "yolox_nano.pth"):
            shutil.copy(best, work / name)
        words = "optimize -c model.pth --save deployed"
        assert command.main([*words.split(), *SHORTER["optimize"]]) == 0
        yield folder


@pytest.fixture
def pages_folder(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder to work in."""
    work = tmp_path / "work"
    shutil.copytree(prepared / "work", work, symlinks=True)
    monkeypatch.setenv("YOLOX_CACHE", str(prepared / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(work)
    return work
