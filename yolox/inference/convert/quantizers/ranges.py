"""Which interval of a tensor's values eight bits should span: the one with the smallest squared error on real data."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVELS = 255
BINS = 2048
VALUES_PER_ROW = 8192
STEPS = 48


class RangeFinder:
    """Collects values of one tensor over many rows and finds its interval.

    Args:
        seed: For the choice of values where there are too many.
    """

    def __init__(self, seed: int = 0) -> None:
        self._generator = np.random.default_rng(seed)
        self._values: list[NDArray[np.float32]] = []

    def add(self, values: NDArray[Any]) -> None:
        """Note the values of one row: its extremes and a random part of the rest."""
        flat = np.asarray(values, dtype=np.float32).reshape(-1)
        if flat.size > VALUES_PER_ROW:
            extremes = np.array([flat.min(), flat.max()], dtype=np.float32)
            flat = np.concatenate([flat[self._generator.integers(0, flat.size, VALUES_PER_ROW)], extremes])
        self._values.append(flat.copy())

    def interval(self, *, silu_follows: bool = False) -> tuple[float, float]:
        """Return the lowest and highest value to represent; zero lies between them.

        Args:
            silu_follows: Measure the error behind the activation x * sigmoid(x), which forgives large negative values.
        """
        values = np.concatenate(self._values)
        low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
        if high - low < 1e-9:
            return 0.0, 1.0
        centers, counts = _histogram(values, low, high)
        wanted = _silu(centers) if silu_follows else centers

        def error(low: float, high: float) -> float:
            got = fake_quantize(centers, low, high)
            return float(counts @ np.square((_silu(got) if silu_follows else got) - wanted))

        # one bound after the other, twice: each depends little on the other
        for _ in range(2):
            high = min((high * f for f in _factors(high)), key=lambda bound: error(low, bound))
            low = min((low * f for f in _factors(low)), key=lambda bound: error(bound, high))
        return low, high


def fake_quantize(values: NDArray[Any], low: float, high: float) -> Any:
    """Return the values as unsigned 8-bit integers between ``low`` and ``high`` represent them."""
    scale = max((high - low) / LEVELS, 1e-12)
    zero = round(-low / scale)
    return (np.clip(np.rint(values / scale) + zero, 0, LEVELS) - zero) * scale


def relative_noise(values: NDArray[Any], low: float, high: float) -> float:
    """Return what 8 bits lose, as a share of the variance of each channel, averaged over the channels.

    A few wide channels set the step of a whole tensor; what it does to the narrow ones decides about the accuracy.

    Args:
        values: Activations; channels on axis 1, or on the last axis if there are fewer than four axes.
        low: Lowest value that is represented.
        high: Highest value that is represented.
    """
    channel_axis = 1 if values.ndim >= 4 else values.ndim - 1
    others = tuple(axis for axis in range(values.ndim) if axis != channel_axis)
    noise = np.square(fake_quantize(values, low, high) - values).mean(axis=others)
    return float(np.minimum(1.0, noise / np.maximum(values.var(axis=others), 1e-12)).mean())


def _histogram(values: NDArray[np.float32], low: float, high: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean and the number of the values in each bin that has any (integers stay integers so)."""
    index = np.minimum(((values - low) * (BINS / (high - low))).astype(np.int64), BINS - 1)
    counts = np.bincount(index, minlength=BINS).astype(np.float64)
    sums = np.bincount(index, weights=values, minlength=BINS)
    filled = counts > 0
    return sums[filled] / counts[filled], counts[filled]


def _factors(bound: float) -> NDArray[np.float64]:
    return np.linspace(1.0, 0.04, STEPS) if bound else np.ones(1)


def _silu(values: NDArray[Any]) -> Any:
    return values / (1.0 + np.exp(-np.clip(values, -60.0, 60.0)))
