"""Repeat-factor sampling: the factors of the paper, and draws that follow them for any number of processes."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from yolox.config import DataConfig
from yolox.data.coco_dataset import CocoDataset, ends
from yolox.data.datamodule import YoloxDataModule, build_augmentation
from yolox.data.image_source import ImageSource
from yolox.data.sample_dataset import draw_sample_set
from yolox.data.sampling import (
    RequestStream,
    SampleRequest,
    WeightedImages,
    class_repeats,
    describe_repeats,
    repeat_factors,
)
from yolox.data.training_samples import TrainingSamples
from yolox.structures import Size


def labelled(*images: tuple[int, ...], crowd: tuple[int, ...] = ()) -> CocoDataset:
    """A data set of three classes; each image is given by the labels of its objects, ``crowd`` names objects."""
    labels = np.array([label for image in images for label in image], np.int32)
    return CocoDataset(
        source="made up",
        image_dir=Path(),
        categories=((1, "common"), (2, "rare"), (3, "unused")),
        image_ids=np.arange(len(images)),
        sizes=np.full((len(images), 2), 64, np.int32),
        names=b"",
        name_ends=np.zeros(len(images) + 1, np.int64),
        object_ends=ends([len(image) for image in images]),
        boxes_xywh=np.tile([1.0, 1.0, 8.0, 8.0], (len(labels), 1)),
        areas=np.full(len(labels), 64.0),
        labels=labels,
        crowd=np.isin(np.arange(len(labels)), crowd),
    )


SIXTEEN = labelled((0, 0, 1), *[(0,)] * 7, *[()] * 8)
"""``common`` is in half of the images, ``rare`` in a sixteenth."""


def test_factors_are_those_of_the_paper() -> None:
    assert class_repeats(SIXTEEN, 0.25) == pytest.approx([1.0, 2.0, 1.0])  # sqrt(0.25 / 0.0625)
    assert repeat_factors(SIXTEEN, 0.25) == pytest.approx([2.0, *[1.0] * 15])
    assert class_repeats(SIXTEEN, 1.0) == pytest.approx([2**0.5, 4.0, 1.0])
    assert repeat_factors(SIXTEEN, 1.0) == pytest.approx([4.0, *[2**0.5] * 7, *[1.0] * 8])  # the rarest class decides
    assert repeat_factors(labelled((1,), (0,), crowd=(0,)), 0.5) == pytest.approx([1.0, 1.0])  # a crowd teaches nothing


def test_the_line_names_the_rare_classes() -> None:
    text = describe_repeats(SIXTEEN, 0.25)
    assert text == (
        "repeat_threshold 0.25: 1 of 3 classes are in fewer images than that; an epoch draws 17 images from 16 "
        "(times: rare 2.00)"
    )


def test_a_pass_draws_each_image_as_often_as_its_factor() -> None:
    weighted = WeightedImages(np.array([3.0, 1.0, 1.5, 1.0, 1.25]))
    assert weighted.draws_per_pass == 8
    stream = RequestStream(5, 3, seed=2, weighted=weighted)
    assert stream.batches_per_epoch == 3
    counts = np.array([np.bincount(stream.permutation(number), minlength=5) for number in range(400)])
    assert (counts.sum(axis=1) == 8).all()
    shares = weighted.weights * 8 / 7.75
    assert (counts >= np.floor(shares)).all()
    assert (counts <= np.ceil(shares)).all()
    np.testing.assert_allclose(counts.mean(axis=0), shares, atol=0.06)
    assert len({tuple(stream.permutation(number)) for number in range(4)}) == 4


def test_equal_weights_draw_every_image_once() -> None:
    stream = RequestStream(7, 2, weighted=WeightedImages(np.ones(7)))
    assert all(sorted(stream.permutation(number)) == list(range(7)) for number in range(20))


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_weighted_batches(world: int) -> None:
    weighted = WeightedImages(np.array([3.0, 1.0, 1.5, 1.0, 1.25]))
    whole = list(islice(RequestStream(5, 6, seed=4, weighted=weighted).batches(), 9))
    parts = [
        list(islice(RequestStream(5, 6, seed=4, rank=rank, world=world, weighted=weighted).batches(), 9))
        for rank in range(world)
    ]
    for number, batch in enumerate(whole):
        shares = [request for part in parts for request in part[number]]
        assert sorted(shares, key=lambda request: request.position) == batch
    again = list(islice(RequestStream(5, 6, seed=4, weighted=weighted).batches(4), 5))
    assert again == whole[4:]


def test_a_mosaic_takes_its_other_images_by_weight(folder: Path) -> None:
    class Watched(ImageSource):
        seen: tuple[int, ...] = ()

        def fitted(self, index: int) -> Size:
            self.seen += (index,)
            return super().fitted(index)

    dataset = module_of(folder, 0.0).train_set
    source = Watched(dataset, Size(64, 64))
    weights = np.ones(len(dataset))
    weights[3] = 1e9
    config = DataConfig(input_size=Size(64, 64), mixup_prob=0.0)
    TrainingSamples(source, build_augmentation(config), WeightedImages(weights))[SampleRequest(5, True, 0, 0)]
    assert source.seen[:4] == (5, 3, 3, 3)


def test_independent_draws_follow_the_weights() -> None:
    drawn = WeightedImages(np.array([1.0, 2.0, 5.0])).draw(np.random.default_rng(0), 8000)
    np.testing.assert_allclose(np.bincount(drawn) / 8000, [0.125, 0.25, 0.625], atol=0.02)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("data") / "shapes"
    draw_sample_set(place, num_train=12, num_val=2)
    return place


def module_of(folder: Path, threshold: float) -> YoloxDataModule:
    config = DataConfig(str(folder), data_num_workers=0, input_size=Size(64, 64), repeat_threshold=threshold)
    return YoloxDataModule(config, batch_size=4, test_size=Size(64, 64))


def test_the_data_module_draws_by_the_threshold(folder: Path) -> None:
    plain, weighted = module_of(folder, 0.0), module_of(folder, 1.0)
    factors = repeat_factors(weighted.train_set, 1.0)
    assert plain.weighted is None
    assert plain.batches_per_epoch == 3
    assert weighted.batches_per_epoch == -(-int(np.ceil(factors.sum())) // 4) > 3
    assert len(weighted.train_dataloader()) == weighted.batches_per_epoch
    batch = next(iter(weighted.train_dataloader()))
    assert batch.images.shape == (4, 3, 64, 64)
    for module in (plain, weighted):
        module.teardown("fit")
