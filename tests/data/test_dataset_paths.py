from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from yolox.data.dataset_paths import default_data_dir, load_split, resolve_dataset
from yolox.data.sample_dataset import draw_sample_set
from yolox.errors import DataError

MakeCoco = Callable[..., Path]


def test_official_layout(make_coco: MakeCoco) -> None:
    root = make_coco()
    paths = resolve_dataset(root)
    assert paths.require("train").labels == root / "annotations" / "instances_train2017.json"
    assert load_split(paths.require("train")).image_dir == root / "train2017"
    assert load_split(paths.require("val")).image_dir == root / "val2017"


@pytest.mark.parametrize("json_name", ["_annotations.coco.json", "annotations.json", "anything.json"])
@pytest.mark.parametrize("val_name", ["val", "valid"])
def test_json_inside_each_image_folder(make_coco: MakeCoco, json_name: str, val_name: str) -> None:
    root = make_coco()
    for old, new in (("train2017", "train"), ("val2017", val_name)):
        (root / old).rename(root / new)
        (root / "annotations" / f"instances_{old}.json").rename(root / new / json_name)
    shutil.rmtree(root / "annotations")
    paths = resolve_dataset(root)
    assert load_split(paths.require("train")).image_dir == root / "train"
    assert load_split(paths.require("val")).image_dir == root / val_name


@pytest.mark.parametrize("pattern", ["instances_{}.json", "{}.json", "{}_annotations.json", "my_{}_labels.json"])
@pytest.mark.parametrize("images", ["{}", "images/{}", "{}/images"])
def test_plain_names(make_coco: MakeCoco, pattern: str, images: str) -> None:
    root = make_coco()
    for name in ("train", "val"):
        (root / "annotations" / f"instances_{name}2017.json").rename(root / "annotations" / pattern.format(name))
        target = root / images.format(name)
        target.parent.mkdir(exist_ok=True)
        (root / f"{name}2017").rename(target)
    paths = resolve_dataset(root)
    assert load_split(paths.require("train")).image_dir == root / images.format("train")
    assert len(load_split(paths.require("val"))) == 3


def test_explicit_paths_relative_and_absolute(make_coco: MakeCoco, tmp_path: Path) -> None:
    root = make_coco()
    other = make_coco(num_train=5, name="other")
    paths = resolve_dataset(
        root,
        train_ann=str(other / "annotations" / "instances_train2017.json"),
        val_ann="instances_val2017.json",
        train_images=str(other / "train2017"),
        val_images="val2017",
    )
    assert len(load_split(paths.require("train"))) == 5
    assert load_split(paths.require("val")).image_dir == root / "val2017"


@pytest.mark.parametrize("option", ["train_ann", "val_ann", "train_images", "val_images"])
def test_a_given_path_that_is_wrong_is_an_error(make_coco: MakeCoco, option: str) -> None:
    wrong: dict[str, Any] = {option: "nowhere"}
    with pytest.raises(DataError, match=f"{option} 'nowhere' does not exist"):
        resolve_dataset(make_coco(), **wrong)


def test_missing_folder_empty_folder_and_missing_split(make_coco: MakeCoco, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        resolve_dataset(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no train labels found"):
        resolve_dataset(tmp_path / "empty")
    root = make_coco()
    (root / "annotations" / "instances_val2017.json").unlink()
    paths = resolve_dataset(root)
    with pytest.raises(DataError, match=r"no val labels found in .*annotations/, train2017/, val2017/"):
        paths.require("val")


def test_given_data_dir_wins_and_never_falls_back(
    make_coco: MakeCoco, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root = make_coco()
    monkeypatch.setenv("YOLOX_DATADIR", str(tmp_path))
    folder, reason = default_data_dir(str(root))
    assert folder == root
    assert "data_dir" in reason
    with pytest.raises(DataError, match="absent"):
        default_data_dir(str(tmp_path / "absent"))


def test_environment_may_name_the_data_set_or_its_parent(
    make_coco: MakeCoco, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root = make_coco(name="COCO")
    for value in (root, tmp_path):
        monkeypatch.setenv("YOLOX_DATADIR", str(value))
        folder, reason = default_data_dir(None)
        assert folder == root
        assert "YOLOX_DATADIR" in reason
    monkeypatch.setenv("YOLOX_DATADIR", str(tmp_path / "absent"))
    with pytest.raises(DataError, match="YOLOX_DATADIR"):
        default_data_dir(None)


def test_default_place_then_sample_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache_folder: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("yolox.data.sample_dataset.NUM_TRAIN", 2)
    monkeypatch.setattr("yolox.data.sample_dataset.NUM_VAL", 1)
    folder, reason = default_data_dir(None)
    assert folder.parent == cache_folder
    assert "sample set" in reason
    assert len(load_split(resolve_dataset(folder).require("train"))) == 2
    (tmp_path / "datasets" / "COCO").mkdir(parents=True)
    folder, reason = default_data_dir(None)
    assert folder == Path("datasets/COCO")


def test_both_splits_of_the_sample_layout_agree(tmp_path: Path) -> None:
    draw_sample_set(tmp_path / "set", 2, 2)
    paths = resolve_dataset(tmp_path / "set")
    train = load_split(paths.require("train"))
    assert load_split(paths.require("val"), train.categories).categories == train.categories
    content = json.loads(paths.require("train").labels.read_text())
    assert {image["id"] for image in content["images"]} == {1, 2}
