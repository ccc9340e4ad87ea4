"""The parts of int8 that need no library: ranges, noise, and the mixed-precision search."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from yolox.inference.backends.base import Arrays, PrepareContext
from yolox.inference.convert.quantizers.mixed_precision import (
    LEAST_INT8_SHARE,
    Layer,
    float_layer_sets,
    search_mixed_precision,
)
from yolox.inference.convert.quantizers.ranges import RangeFinder, fake_quantize, relative_noise
from yolox.kernels.int8.packing import weight_bounds

GENERATOR = np.random.default_rng(0)


def interval_of(values: np.ndarray, **options: bool) -> tuple[float, float]:
    finder = RangeFinder()
    finder.add(values)
    return finder.interval(**options)


def test_images_are_represented_without_any_loss() -> None:
    images = GENERATOR.integers(0, 256, (3, 64, 64)).astype(np.float32)
    images[0, 0, :2] = 0, 255
    interval = interval_of(images)
    assert interval == (0.0, 255.0)
    np.testing.assert_allclose(fake_quantize(images, *interval), images, atol=1e-4)


def test_large_negative_values_before_silu_cost_nothing() -> None:
    values = np.concatenate([GENERATOR.uniform(-80, -20, 4000), GENERATOR.uniform(-3, 3, 4000)]).astype(np.float32)
    assert interval_of(values)[0] < -60
    assert interval_of(values, silu_follows=True)[0] > -25


@pytest.mark.parametrize("values", [np.zeros((2, 3)), np.full((4,), 5.0), np.full((4,), -5.0)])
def test_constant_tensors_have_a_usable_interval(values: np.ndarray) -> None:
    low, high = interval_of(values)
    assert low <= 0 <= high
    assert high > low
    assert np.abs(fake_quantize(values, low, high) - values).max() < 0.03


def test_ranges_do_not_depend_on_anything_but_the_values() -> None:
    values = GENERATOR.normal(size=(1, 4, 100, 100)).astype(np.float32)
    assert interval_of(values) == interval_of(values)


def test_narrow_channels_beside_a_wide_one_are_noisy() -> None:
    even = GENERATOR.normal(size=(1, 4, 32, 32))
    uneven = even * np.array([100.0, 1, 1, 1]).reshape(1, 4, 1, 1)
    assert relative_noise(uneven, uneven.min(), uneven.max()) > 100 * relative_noise(even, even.min(), even.max())


@pytest.mark.parametrize("shape", [(8, 6, 3, 3), (8, 7, 1, 1), (8, 1), (4, 64, 1, 1)])
def test_weights_of_neighbours_add_up_to_128_at_most(shape: tuple[int, ...]) -> None:
    weight = GENERATOR.normal(size=shape).astype(np.float32) ** 3
    weight[0, 0] *= 10
    bounds = weight_bounds(weight, pairs=True)
    largest = np.abs(weight).reshape(len(weight), -1).max(1)
    assert (bounds >= largest).all()
    assert (bounds <= 2 * largest).all()
    np.testing.assert_allclose(weight_bounds(weight, pairs=False), largest, rtol=1e-6)
    whole = np.rint(weight * (127.5 / bounds).reshape(-1, *[1] * (len(shape) - 1))).clip(-127, 127)
    for sign in (1, -1):
        for first in range(0, shape[1], 2):
            assert np.maximum(sign * whole[:, first : first + 2], 0).sum(1).max() <= 128


LAYERS = [Layer("stem", 140, 0.5), Layer("narrow", 10, 0.9), *(Layer(f"body{i}", 85, i / 100) for i in range(10))]


def test_layer_sets_take_the_worst_layers_first_and_keep_enough_int8() -> None:
    found = float_layer_sets(LAYERS, already_float=40)
    total = sum(layer.macs for layer in LAYERS) + 40
    assert found[0] == {"narrow"}
    assert len(found) == len(set(found)) > 2
    for excluded in found:
        float_macs = 40 + sum(layer.macs for layer in LAYERS if layer.name in excluded)
        assert 1 - float_macs / total >= LEAST_INT8_SHARE
    assert all("stem" in excluded for excluded in found[1:])


def test_models_of_one_layer_have_one_layer_set() -> None:
    assert float_layer_sets([Layer("only", 100, 1.0)]) == [frozenset()]


class RecordedSearch:
    """A model is the number of its float layers; its accuracy is looked up."""

    def __init__(self, accuracies: list[float], tmp_path: Path) -> None:
        self.accuracies = accuracies
        self.tried: list[frozenset[str]] = []
        self.context = PrepareContext(
            (np.zeros((1, 1)),), (), 1, tmp_path, accuracy=self.accuracy, original_accuracy=0.5, max_drop=0.01
        )

    def accuracy(self, predict: Callable[..., Arrays]) -> float:
        return self.accuracies[predict()[0]]

    def quantize(self, excluded: frozenset[str]) -> int:
        self.tried.append(excluded)
        return len(self.tried) - 1

    def run(self, **changes: object) -> int:
        context = replace(self.context, **changes)  # type: ignore[arg-type]
        return search_mixed_precision(self.quantize, LAYERS, 40, lambda model: lambda: (model,), context)


def test_the_first_model_within_the_bound_is_taken(tmp_path: Path) -> None:
    search = RecordedSearch([0.3, 0.495, 0.5, 0.5], tmp_path)
    assert search.run() == 1
    assert len(search.tried) == 2


def test_the_best_model_is_taken_when_none_is_within_the_bound(tmp_path: Path) -> None:
    search = RecordedSearch([0.3, 0.45, 0.4, 0.2], tmp_path)
    assert search.run() == 1
    assert len(search.tried) == len(float_layer_sets(LAYERS, 40))


def test_without_a_metric_the_first_layer_set_is_taken(tmp_path: Path) -> None:
    search = RecordedSearch([], tmp_path)
    assert search.run(accuracy=None) == 0


def test_the_deadline_ends_the_search(tmp_path: Path) -> None:
    said: list[str] = []
    search = RecordedSearch([0.3, 0.5, 0.5, 0.5], tmp_path)
    assert search.run(deadline_s=time.monotonic() - 1, progress=said.append) == 0
    assert "no time left" in said[-1]
