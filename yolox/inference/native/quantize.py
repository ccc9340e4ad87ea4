"""Bytes for a network: which interval of real values each channel's bytes span, and the convolutions' 8-bit weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolox.inference.native.layers import Convolution, Enlarge, Join, Network, Pixels, Pool, Rows, Sum
from yolox.inference.native.program import Floats
from yolox.inference.quantizers.overflow import weight_bounds

__all__ = ["Code", "Extremes", "Rounded", "collect", "find_codes", "round_weights"]

LEVELS = 255
LARGEST_WEIGHT = 127
LEAST_SCALE = 1e-8
LEAST_SHARE = 1 / 64
"""Smallest interval of a channel, as a share of the whole feature's: silent ones might wake up elsewhere."""


@dataclass(frozen=True, eq=False)
class Code:
    """What a feature's bytes stand for: ``scale * (byte - zero)``, channel by channel.

    Args:
        scale: [channels].
        zero: [channels].
    """

    scale: Floats
    zero: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Rounded:
    """The numbers of a ``program.Conv``: ``weight``, ``multiplier`` and ``offset``."""

    weight: NDArray[np.int8]
    multiplier: Floats
    offset: Floats


@dataclass
class Extremes:
    """What calibration learned of a feature.

    Args:
        low: Smallest values of each channel, [channels] for each image.
        high: Largest values, likewise.
        mean: Mean values, likewise.
        whole: Whether all values were whole numbers; asked of the network's inputs only.
    """

    low: list[Floats] = field(default_factory=list)
    high: list[Floats] = field(default_factory=list)
    mean: list[Floats] = field(default_factory=list)
    whole: bool = True

    def code(self, quantile: float) -> Code:
        """Return bytes that span the extremes of this share of the images, in each channel; zero is always a byte."""
        low = np.minimum(np.quantile(np.stack(self.low), 1.0 - quantile, axis=0), 0.0)
        high = np.maximum(np.quantile(np.stack(self.high), quantile, axis=0), 0.0)
        least = max(float(high.max() - low.min()) * LEAST_SHARE / LEVELS, LEAST_SCALE)
        scale = np.maximum((high - low) / LEVELS, least).astype(np.float32)
        return Code(scale, np.clip(np.rint(-low / scale), 0, LEVELS).astype(np.uint8))

    @property
    def are_pixels(self) -> bool:
        """Whether the values are bytes already."""
        return self.whole and np.stack(self.low).min() >= 0 and bool(np.stack(self.high).max() <= LEVELS)


def collect(network: Network, batches: Iterable[Sequence[NDArray[Any]]]) -> dict[str, Extremes]:
    """Return the extremes of all features on some batches of inputs."""
    found: dict[str, Extremes] = {}
    for arrays in batches:
        for layer, _, value in network.steps(arrays):
            if isinstance(layer, Pixels | Convolution | Sum | Pool | Enlarge | Join):
                extremes = found.setdefault(layer.output, Extremes())
                extremes.low.extend(value.amin((2, 3)).numpy())
                extremes.high.extend(value.amax((2, 3)).numpy())
                extremes.mean.extend(value.mean((2, 3)).numpy())
                if isinstance(layer, Pixels):
                    extremes.whole = extremes.whole and bool((value == value.round()).all())
    return found


def find_codes(network: Network, extremes: Mapping[str, Extremes], quantile: float) -> dict[str, Code]:
    """Return the code of every feature; what becomes rows of a matrix stays float and has none.

    Args:
        network: The layers.
        extremes: What ``collect`` found.
        quantile: See ``Extremes.code``.
    """
    codes: dict[str, Code] = {}
    floats = {layer.inputs[0] for layer in network.layers if isinstance(layer, Rows)}
    for layer in network.layers:
        if isinstance(layer, Pixels):
            seen = extremes[layer.output]
            count = len(layer.order)
            pixels = Code(np.ones(count, np.float32), np.zeros(count, np.uint8))
            codes[layer.output] = pixels if seen.are_pixels else seen.code(1.0)
        elif isinstance(layer, Pool | Enlarge):
            codes[layer.output] = codes[layer.inputs[0]]
        elif isinstance(layer, Join):
            parts = [codes[name] for name in layer.inputs]
            scale, zero = (np.concatenate([getattr(part, name) for part in parts]) for name in ("scale", "zero"))
            codes[layer.output] = Code(scale, zero)
        elif isinstance(layer, Convolution | Sum) and layer.output not in floats:
            codes[layer.output] = extremes[layer.output].code(quantile)
    return codes


def round_weights(layer: Convolution, code: Code, extremes: Extremes, *, in_pairs: bool = False) -> Rounded:
    """Return a convolution's 8-bit weights, into which the scales of the input's channels went before rounding.

    What rounding the weights changes in the mean of a channel is taken out of its offset again.

    Args:
        layer: The convolution.
        code: Of its input.
        extremes: Of its input.
        in_pairs: Keep the sums of two neighbouring inputs' weights small, too: see ``packing.paired_weight``.
    """
    shape = (-1, 1, 1, 1) if layer.depthwise else (1, -1, 1, 1)
    folded = layer.weight * code.scale.reshape(shape)
    largest = weight_bounds(folded, pairs=in_pairs and not layer.depthwise)
    multiplier = np.maximum(largest / LARGEST_WEIGHT, LEAST_SCALE).astype(np.float32)
    weight = np.rint(folded / multiplier[:, None, None, None]).astype(np.int8)
    error = folded - weight * multiplier[:, None, None, None]
    mean = np.mean(extremes.mean, axis=0, dtype=np.float64) / code.scale
    shift = (error * mean.reshape(shape)).sum((1, 2, 3))
    zeros = (weight.astype(np.float64) * code.zero.astype(np.float64).reshape(shape)).sum((1, 2, 3))
    return Rounded(weight, multiplier, (layer.bias + shift - multiplier * zeros).astype(np.float32))
