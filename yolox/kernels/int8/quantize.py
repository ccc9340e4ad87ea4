"""Bytes for a network: which interval of real values each channel's bytes span, and the convolutions' 8-bit weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from yolox.kernels.int8.float_ir import Network
from yolox.kernels.int8.int8_ir import Floats
from yolox.kernels.int8.packing import weight_bounds

if TYPE_CHECKING:
    from yolox.kernels.int8.ops.convolution import Convolution


LEVELS = 255
LARGEST_WEIGHT = 127
LEAST_SCALE = 1e-8
LEAST_SHARE = 1 / 64
"""Smallest interval of a channel, as a share of the whole feature's: silent ones might wake up elsewhere."""


@dataclass(frozen=True, eq=False)
class QuantizationParameters:
    """What a feature's bytes stand for: ``scale * (byte - zero)``, channel by channel.

    Args:
        scale: [channels].
        zero: [channels].
    """

    scale: Floats
    zero: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class QuantizedWeights:
    """The numbers of a ``int8_ir.Conv``: ``weight``, ``multiplier`` and ``offset``."""

    weight: NDArray[np.int8]
    multiplier: Floats
    offset: Floats


@dataclass
class RangeObserver:
    """The range of a feature that calibration observed.

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

    def parameters(self, quantile: float) -> QuantizationParameters:
        """Return bytes that span the extremes of this share of the images, in each channel; zero is always a byte."""
        low = np.minimum(np.quantile(np.stack(self.low), 1.0 - quantile, axis=0), 0.0)
        high = np.maximum(np.quantile(np.stack(self.high), quantile, axis=0), 0.0)
        least = max(float(high.max() - low.min()) * LEAST_SHARE / LEVELS, LEAST_SCALE)
        scale = np.maximum((high - low) / LEVELS, least).astype(np.float32)
        return QuantizationParameters(scale, np.clip(np.rint(-low / scale), 0, LEVELS).astype(np.uint8))

    @property
    def are_pixels(self) -> bool:
        """Whether the values are bytes already."""
        return self.whole and np.stack(self.low).min() >= 0 and bool(np.stack(self.high).max() <= LEVELS)


def observe(network: Network, batches: Iterable[Sequence[NDArray[Any]]]) -> dict[str, RangeObserver]:
    """Return the extremes of all features on some batches of inputs."""
    found: dict[str, RangeObserver] = {}
    for arrays in batches:
        for layer, inputs, value in network.steps(arrays):
            if value.ndim != 4:
                continue
            extremes = found.setdefault(layer.output, RangeObserver())
            extremes.low.extend(value.amin((2, 3)).numpy())
            extremes.high.extend(value.amax((2, 3)).numpy())
            extremes.mean.extend(value.mean((2, 3)).numpy())
            if set(layer.inputs) & set(network.inputs):
                extremes.whole = extremes.whole and bool((inputs[0] == inputs[0].round()).all())
    return found


def quantization_parameters(
    network: Network, observers: Mapping[str, RangeObserver], quantile: float
) -> dict[str, QuantizationParameters]:
    """Return the quantization parameters of every feature; what a convolution writes as floats alone has none.

    Args:
        network: The layers.
        observers: What ``observe`` found.
        quantile: See ``RangeObserver.parameters``.
    """
    parameters: dict[str, QuantizationParameters] = {}
    floats = network.float_convolutions()
    for layer in network.layers:
        if layer.output in observers and layer.output not in floats:
            parameters[layer.output] = layer.parameters(parameters, observers[layer.output], quantile)
    return parameters


def quantize_weights(
    layer: Convolution, parameters: QuantizationParameters, observer: RangeObserver, *, in_pairs: bool = False
) -> QuantizedWeights:
    """Return a convolution's 8-bit weights, into which the scales of the input's channels went before rounding.

    What rounding the weights changes in the mean of a channel is taken out of its offset again.

    Args:
        layer: The convolution.
        parameters: Quantization parameters of its input.
        observer: Ranges of its input.
        in_pairs: Keep the sums of two neighbouring inputs' weights small, too: see ``packing.paired_weight``.
    """
    shape = (layer.groups, -1)  # each output sees the inputs of its group
    repeated = len(layer.weight) // layer.groups if layer.groups > 1 else 1

    def beside_weights(values: NDArray[Any]) -> NDArray[Any]:
        return values.reshape(shape).repeat(repeated, 0)[:, :, None, None]

    folded = layer.weight * beside_weights(parameters.scale)
    largest = weight_bounds(folded, pairs=in_pairs and not layer.depthwise)
    multiplier = np.maximum(largest / LARGEST_WEIGHT, LEAST_SCALE).astype(np.float32)
    weight = np.rint(folded / multiplier[:, None, None, None]).astype(np.int8)
    error = folded - weight * multiplier[:, None, None, None]
    mean = np.mean(observer.mean, axis=0, dtype=np.float64) / parameters.scale
    shift = (error * beside_weights(mean)).sum((1, 2, 3))
    zeros = (weight.astype(np.float64) * beside_weights(parameters.zero.astype(np.float64))).sum((1, 2, 3))
    return QuantizedWeights(weight, multiplier, (layer.bias + shift - multiplier * zeros).astype(np.float32))
