from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from yolox.data.cache import ResizedImages, open_cache
from yolox.data.coco_dataset import CocoDataset
from yolox.data.dataset_paths import load_split, resolve_dataset
from yolox.data.image_source import ImageSource
from yolox.data.loader import TrainLoader
from yolox.data.sampling import RequestStream
from yolox.data.training_samples import Augmentation, TrainingSamples
from yolox.data.transforms import TrainTransform
from yolox.errors import DataError
from yolox.files import cache_root
from yolox.structures import Image, Size

MakeCoco = Callable[..., Path]
TARGET = Size(64, 64)


def opened(kind: str, dataset: CocoDataset) -> ResizedImages:
    cache = open_cache(kind, dataset, TARGET, reduced_decode=False)  # type: ignore[arg-type]
    assert cache is not None
    return cache


@pytest.fixture
def dataset(make_coco: MakeCoco, cache_folder: Path) -> CocoDataset:
    return load_split(resolve_dataset(make_coco()).require("train"))


def images(dataset: CocoDataset, cache: ResizedImages | None) -> list[Image]:
    source = ImageSource(dataset, TARGET, cache=cache)
    found = [source.image(i) for i in range(len(dataset))]
    assert all(image is not None for image in found)
    return [np.array(image) for image in found]


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_cached_images_equal_the_others(dataset: CocoDataset, kind: str) -> None:
    plain = images(dataset, None)
    cache = opened(kind, dataset)
    assert cache.get(0) is None
    for _ in range(2):
        for mine, theirs in zip(images(dataset, cache), plain, strict=True):
            np.testing.assert_array_equal(mine, theirs)
    assert cache.get(0) is not None


@pytest.mark.processes
@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_workers_share_the_cache(dataset: CocoDataset, kind: str) -> None:
    cache = opened(kind, dataset)
    samples = TrainingSamples(ImageSource(dataset, TARGET, cache=cache), Augmentation(TrainTransform(TARGET)))
    loader = TrainLoader(samples, RequestStream(len(dataset), 4), num_workers=1)
    for _ in range(3):
        list(loader)
    loader.close()
    assert all(cache.get(i) is not None for i in range(len(dataset)))


def test_disk_cache_serves_the_next_run_without_the_files_being_decoded(
    dataset: CocoDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = images(dataset, opened("disk", dataset))
    monkeypatch.setattr("yolox.data.image_source.read_image", lambda *_: pytest.fail("decoded again"))
    for mine, theirs in zip(images(dataset, opened("disk", dataset)), plain, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_changed_image_is_read_again(dataset: CocoDataset) -> None:
    images(dataset, opened("disk", dataset))
    path, other = dataset.path(0), dataset.path(2)
    path.write_bytes(other.read_bytes())
    os.utime(path, ns=(1, 1))
    fresh = opened("disk", dataset)
    assert fresh.get(0) is None
    assert fresh.get(1) is not None
    np.testing.assert_array_equal(images(dataset, fresh)[0], images(dataset, None)[0])
    assert fresh.get(0) is not None


def test_a_damaged_entry_is_made_again(dataset: CocoDataset) -> None:
    plain = images(dataset, opened("disk", dataset))
    (file,) = cache_root().glob("images-*.bin")
    with file.open("r+b") as handle:
        handle.seek(-5, os.SEEK_END)
        handle.write(b"\xff\x00\xff\x00\xff")
    fresh = opened("disk", dataset)
    assert fresh.get(len(dataset) - 1) is None
    np.testing.assert_array_equal(images(dataset, fresh)[-1], plain[-1])
    assert fresh.get(0) is not None


def test_a_cut_file_is_completed(dataset: CocoDataset) -> None:
    images(dataset, opened("disk", dataset))
    (file,) = cache_root().glob("images-*.bin")
    size = file.stat().st_size
    os.truncate(file, size // 2)
    plain = images(dataset, None)
    for mine, theirs in zip(images(dataset, opened("disk", dataset)), plain, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert file.stat().st_size == size


def test_other_sizes_and_sets_have_files_of_their_own(dataset: CocoDataset) -> None:
    opened("disk", dataset)
    open_cache("disk", dataset, Size(32, 32), reduced_decode=False)
    open_cache("disk", dataset, TARGET, reduced_decode=True)
    assert len(list(cache_root().glob("images-*.bin"))) == 3


@pytest.mark.parametrize(
    ("kind", "place"), [("ram", "yolox.data.cache.available_memory"), ("disk", "yolox.data.cache.shutil.disk_usage")]
)
def test_too_little_space_is_refused(
    dataset: CocoDataset, monkeypatch: pytest.MonkeyPatch, kind: str, place: str
) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr(place, lambda *_: Usage if kind == "disk" else 1000)
    with pytest.raises(DataError, match="the image cache needs"):
        opened(kind, dataset)
    assert not list(cache_root().glob("images-*.bin"))


def test_without_a_wish_a_small_set_is_kept_in_memory(dataset: CocoDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_cache("off", dataset, TARGET, reduced_decode=False) is None
    assert open_cache(None, dataset, TARGET, reduced_decode=False) is not None
    monkeypatch.setattr("yolox.data.cache.available_memory", lambda: 200_000)
    assert open_cache(None, dataset, TARGET, reduced_decode=False) is None
