"""A network as layers with float weights: read from a file, run to calibrate, turned into the steps of a program.

Values are features [batch, channels, height, width] or matrices [batch, rows, columns].
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from yolox.kernels.int8.int8_ir import Activation, Floats, Function, Operation

__all__ = [
    "Columns",
    "Combine",
    "Convolution",
    "Enlarge",
    "Join",
    "Layer",
    "Map",
    "Network",
    "Pixels",
    "Pool",
    "Rows",
    "Stack",
    "Sum",
]

LEAKY_SLOPE = 0.1


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer is called with the values of its inputs.

    Args:
        name: What the file calls it.
        inputs: Names of the values it reads.
        output: Name of the value it writes.
    """

    name: str
    inputs: tuple[str, ...]
    output: str

    def __call__(self, *values: Tensor) -> Tensor:
        """Return the output's value."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Pixels(Layer):
    """An input of the network, with blocks of pixels rearranged to channels: see ``int8_ir.Pack``."""

    block: int
    order: tuple[int, ...]

    def __call__(self, *values: Tensor) -> Tensor:
        """Return [batch, channels * block * block, height / block, width / block]."""
        return F.pixel_unshuffle(values[0], self.block)[:, list(self.order)]


@dataclass(frozen=True, eq=False)
class Convolution(Layer):
    """A convolution and what follows it.

    Args:
        weight: [out, in, height, width]; [channels, 1, height, width] if depthwise.
        bias: [out].
        stride: Step over rows and columns.
        padding: Rows and columns of zeros at every side.
        depthwise: Each channel on its own.
        activation: What follows.
    """

    weight: Floats
    bias: Floats
    stride: int
    padding: int
    depthwise: bool
    activation: Activation

    def linear(self, values: Tensor, weight: Floats, bias: Floats) -> Tensor:
        """Return the convolution's result with other numbers, not activated."""
        groups = len(weight) if self.depthwise else 1
        numbers = (torch.from_numpy(weight), torch.from_numpy(bias))
        return F.conv2d(values, *numbers, self.stride, self.padding, groups=groups)

    def activate(self, values: Tensor) -> Tensor:
        """Return the activated values."""
        if self.activation is Activation.RELU:
            return values.relu()
        if self.activation is Activation.LEAKY_RELU:
            return F.leaky_relu(values, LEAKY_SLOPE)
        if self.activation is Activation.SILU:
            return F.silu(values)
        return values.sigmoid() if self.activation is Activation.SIGMOID else values

    def __call__(self, *values: Tensor) -> Tensor:
        """Return [batch, out, height, width]."""
        return self.activate(self.linear(values[0], self.weight, self.bias))


@dataclass(frozen=True, eq=False)
class Pool(Layer):
    """The largest value of a window of odd ``size`` around each pixel."""

    size: int

    def __call__(self, *values: Tensor) -> Tensor:
        """Return the shape that came."""
        return F.max_pool2d(values[0], self.size, 1, self.size // 2)


@dataclass(frozen=True, eq=False)
class Enlarge(Layer):
    """Each pixel ``factor`` times in each direction."""

    factor: int

    def __call__(self, *values: Tensor) -> Tensor:
        """Return [batch, channels, height * factor, width * factor]."""
        return values[0].repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3)


@dataclass(frozen=True, eq=False)
class Sum(Layer):
    """The sum of two features."""

    def __call__(self, *values: Tensor) -> Tensor:
        """Return the shape that came."""
        return values[0] + values[1]


@dataclass(frozen=True, eq=False)
class Join(Layer):
    """Features side by side as channels of one."""

    def __call__(self, *values: Tensor) -> Tensor:
        """Return [batch, all channels, height, width]."""
        return torch.cat(values, 1)


@dataclass(frozen=True, eq=False)
class Rows(Layer):
    """A feature as a matrix, a pixel a row."""

    def __call__(self, *values: Tensor) -> Tensor:
        """Return [batch, height * width, channels]."""
        return values[0].flatten(2).transpose(1, 2)


@dataclass(frozen=True, eq=False)
class Stack(Layer):
    """Matrices one below the other (``axis`` 1) or side by side (``axis`` 2)."""

    axis: int

    def __call__(self, *values: Tensor) -> Tensor:
        """Return one matrix."""
        return torch.cat(values, self.axis)


@dataclass(frozen=True, eq=False)
class Columns(Layer):
    """The columns ``first ... last`` (not included) of a matrix."""

    first: int
    last: int

    def __call__(self, *values: Tensor) -> Tensor:
        """Return [batch, rows, last - first]."""
        return values[0][:, :, self.first : self.last]


@dataclass(frozen=True, eq=False)
class Map(Layer):
    """A function of each number of a matrix."""

    function: Function

    def __call__(self, *values: Tensor) -> Tensor:
        """Return the shape that came."""
        return values[0].sigmoid() if self.function is Function.SIGMOID else values[0].exp()


@dataclass(frozen=True, eq=False)
class Combine(Layer):
    """An operation of two matrices, one of which may be a constant."""

    operation: Operation

    def __call__(self, *values: Tensor) -> Tensor:
        """Return the result."""
        left, right = values
        if self.operation is Operation.ADD:
            return left + right
        if self.operation is Operation.SUBTRACT:
            return left - right
        return left * right if self.operation is Operation.MULTIPLY else left / right


@dataclass(frozen=True, eq=False)
class Network:
    """Layers in the order of execution.

    Args:
        inputs: Names of the inputs.
        layers: What is computed.
        outputs: Names of the outputs.
        constants: Matrices [rows, columns] that layers read.
    """

    inputs: tuple[str, ...]
    layers: tuple[Layer, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, Floats]

    def steps(self, arrays: Sequence[NDArray[Any]]) -> Iterator[tuple[Layer, tuple[Tensor, ...], Tensor]]:
        """Run a batch and yield each layer with its inputs and its output; no longer needed values are forgotten.

        Args:
            arrays: One array [batch, channels, height, width] for each input.
        """
        values = {name: torch.from_numpy(np.array(value, np.float32)) for name, value in self.constants.items()}
        values |= {n: torch.from_numpy(np.array(a, np.float32)) for n, a in zip(self.inputs, arrays, strict=True)}
        left = self.readers()
        with torch.inference_mode():
            for layer in self.layers:
                inputs = tuple(values[name] for name in layer.inputs)
                values[layer.output] = layer(*inputs)
                yield layer, inputs, values[layer.output]
                left.subtract(layer.inputs)
                for name in layer.inputs:
                    if not left[name]:
                        values.pop(name, None)

    def __call__(self, *arrays: NDArray[Any]) -> tuple[NDArray[np.float32], ...]:
        """Return the outputs for a batch."""
        found = {layer.output: value for layer, _, value in self.steps(arrays) if layer.output in self.outputs}
        return tuple(found[name].contiguous().numpy() for name in self.outputs)

    def shapes(self, arrays: Sequence[NDArray[Any]]) -> dict[str, tuple[int, ...]]:
        """Return the shape of every value, inputs included, without the batch axis, as one run shows it."""
        known = {name: tuple(array.shape[1:]) for name, array in zip(self.inputs, arrays, strict=True)}
        return known | {layer.output: tuple(value.shape[1:]) for layer, _, value in self.steps(arrays)}

    def readers(self) -> Counter[str]:
        """Return how often each value is read, by layers and as an output."""
        return Counter([*(name for layer in self.layers for name in layer.inputs), *self.outputs])
