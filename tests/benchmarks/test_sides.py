"""The stock sides compute what ours do, and the shared statistics are what they are called."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.photographs import SIZES, write_photographs
from benchmarks.protocol import Part, summary
from benchmarks.scaling import projected, serial_share
from benchmarks.stock_detector import StockDetector
from benchmarks.stock_pipeline import StockPipeline
from yolox.data.dataset_paths import load_split, resolve_dataset
from yolox.data.image_source import ImageSource
from yolox.experiments import get_experiment
from yolox.models.detector import build_detector
from yolox.structures import Size


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photographs(tmp_path_factory.mktemp("photographs"), 6)


@pytest.mark.parametrize("name", ["yolox_nano", "yolox_s"])
def test_the_stock_network_is_ours(name: str) -> None:
    config = get_experiment(name).model
    torch.manual_seed(0)
    ours, stock = build_detector(config).eval(), StockDetector(config).eval()
    stock.load_state_dict(ours.state_dict())
    images = torch.rand(2, 3, 64, 96) * 255
    with torch.no_grad():
        mine, theirs = ours(images), stock(images)
    for one, other in zip(mine[:3], theirs[:3], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    assert mine[3:] == theirs[3:]


def test_photographs_are_a_data_set_as_hard_to_decode_as_coco(photographs: Path) -> None:
    dataset = load_split(resolve_dataset(photographs).require("train"))
    assert len(dataset) == 6
    assert {tuple(size) for size in dataset.sizes.tolist()} == set(SIZES)
    assert 100_000 < np.mean([dataset.path(i).stat().st_size for i in range(6)]) < 250_000


def test_the_plain_pipeline_reads_what_ours_reads(photographs: Path) -> None:
    plain = StockPipeline(photographs, 96, (0.5, 1.5))
    source = ImageSource(load_split(resolve_dataset(photographs).require("train")), Size(96, 96))
    for index in range(6):
        image, labels = plain.read(index)
        ours = source.sample(index)
        assert ours is not None
        np.testing.assert_array_equal(image, ours.image)
        np.testing.assert_allclose(labels[:, :4], ours.boxes_xyxy, atol=1e-3)
    for mixup in (False, True):
        image, labels = plain.mosaic(0, mixup=mixup)
        assert image.shape == (3, 96, 96)
        assert image.dtype == np.float32
        assert ((labels[:, :4] >= 0) & (labels[:, :4] <= 96)).all()


def test_summary_is_of_the_middle() -> None:
    found = summary([1.0, 2.0, 3.0, 4.0, 100.0])
    assert found["median"] == 3
    assert 1 < found["p10"] < 2
    assert 4 < found["p90"] < 100
    assert found["count"] == 5


def test_a_value_that_a_row_lacks_is_a_dash() -> None:
    text = Part(
        [{"a": 1.25}, {"a": None, "b": {"c": 2}}], {"A": "{a:.1f}", "B": "{b[c]}"}, notes=["Note."]
    ).to_markdown()
    assert text.splitlines()[2:] == ["| 1.2 | – |", "| – | 2 |", "", "Note."]


def test_projection_follows_amdahl() -> None:
    assert serial_share(10, 20, 2) == 0
    assert serial_share(10, 10, 2) == 1
    assert serial_share(10, 16, 2) == pytest.approx(0.25)
    assert serial_share(10, 99, 1) == 0
    free = {row["side"]: row["images_per_second"]["median"] for row in projected(10, 0.0)}
    bound = {row["side"]: row["images_per_second"]["median"] for row in projected(10, 0.1)}
    assert free["2 x 28 cores: 1 process (projected)"] == pytest.approx(560)
    assert all(bound[side] < free[side] for side in free)
