"""Weights for AVX2, which adds two products of bytes in 16 bits: no sum overflows, and none is changed."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from yolox.kernels.int8.int8_ir import Activation
from yolox.kernels.int8.ops.convolution import Convolution
from yolox.kernels.int8.packing import MOST_OF_A_PAIR, paired_weight
from yolox.kernels.int8.quantize import QuantizationParameters, RangeObserver, quantize_weights


def blocks(weight: NDArray[np.int8], *, split: bool) -> list[dict[int, NDArray[np.int64]]]:
    """Return the sum of all weights [16, 4] for each place of four bytes, for each 16 outputs."""
    packed, order = paired_weight(weight, 1000, 100, split=split)
    count = -(-len(weight) // 16)
    first, places = order[: count + 1], order[count + 1 :]
    steps = packed.reshape(-1, 16, 4).astype(np.int64)
    assert len(steps) == len(places) == first[-1]
    found: list[dict[int, NDArray[np.int64]]] = []
    for start, end in pairwise(first):
        sums: dict[int, NDArray[np.int64]] = {}
        for place, step in zip(places[start:end], steps[start:end], strict=True):
            sums[int(place)] = sums.get(int(place), 0) + step
        found.append(sums)
    return found


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("shape", [(16, 4, 1, 1), (40, 10, 3, 3), (5, 3, 2, 2)])
def test_weights_are_split_without_a_change_of_any_sum(shape: tuple[int, ...], split: bool) -> None:
    weight = np.random.default_rng(0).choice([-128, -127, -3, 1, 64, 65, 127], shape).astype(np.int8)
    packed, _ = paired_weight(weight, 1000, 100, split=split)
    pairs = packed.reshape(-1, 2).astype(int).sum(1)
    assert (np.abs(pairs).max() <= MOST_OF_A_PAIR) == split
    order = [0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15]
    for index, sums in enumerate(blocks(weight, split=split)):
        outs = weight[16 * index : 16 * index + 16]
        assert len(sums) == shape[2] * shape[3] * -(-shape[1] // 4)
        for place, step in sums.items():
            y, x, first = place // 1000, place % 1000 // 100, place % 100
            part = outs[:, first : first + 4, y, x]
            expected = np.zeros((16, 4), np.int64)
            expected[: part.shape[0], : part.shape[1]] = part
            np.testing.assert_array_equal(step, expected[order])


@pytest.mark.parametrize("inputs", [1, 7, 32])
def test_weights_rounded_in_pairs_need_no_split(inputs: int) -> None:
    source = np.random.default_rng(1)
    weight = (source.normal(0, 1, (48, inputs, 3, 3)) + 0.5).astype(np.float32)
    layer = Convolution("name", ("x",), "y", weight, np.zeros(48, np.float32), activation=Activation.SILU)
    code = QuantizationParameters(np.ones(inputs, np.float32), np.zeros(inputs, np.uint8))
    extremes = RangeObserver(mean=[np.zeros(inputs, np.float32)])
    rounded = quantize_weights(layer, code, extremes, in_pairs=True)
    assert np.abs(rounded.weight).max() > 63
    split, plain = (paired_weight(rounded.weight, 1000, 100, split=split)[0] for split in (True, False))
    assert split.size == plain.size == 48 * 9 * -(-inputs // 4) * 4
    freely = quantize_weights(layer, code, extremes)
    assert np.abs(freely.weight).max(axis=(1, 2, 3)).min() == 127
    if inputs > 1:
        assert paired_weight(freely.weight, 1000, 100, split=True)[0].size > plain.size


CHANNEL = st.tuples(*[st.floats(-1e4, 1e4, width=32).map(lambda value: value + 0.0)] * 2).map(sorted)  # no -0.0


@given(st.lists(CHANNEL, min_size=1, max_size=8), st.integers(0, 2**32))
def test_bytes_stand_for_what_was_observed_to_half_a_step(channels: list[list[float]], seed: int) -> None:
    """And zero, with which maps are padded, is exactly a byte."""
    low, high = np.array(channels, np.float32).T
    parameters = RangeObserver([low], [high], [(low + high) / 2]).parameters(1.0)
    scale, zero = parameters.scale.astype(np.float64), parameters.zero.astype(np.float64)
    assert (scale > 0).all()
    values = np.random.default_rng(seed).uniform(low, high, (20, len(low)))
    stored = np.rint(values / scale + zero).clip(0, 255)
    # half a step, and the other half where rounding the zero moved an end of the interval
    assert (np.abs(scale * (stored - zero) - values) <= scale * (1 + 1e-4)).all()
    inner = (values > low + scale) & (values < high - scale)
    assert (np.abs(scale * (stored - zero) - values) <= scale * (0.5 + 1e-4))[inner].all()
