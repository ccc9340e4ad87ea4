"""A network as layers with float weights: read from a file, run to calibrate, turned into the steps of a program.

Values are features [batch, channels, height, width] or matrices [batch, rows, columns]. The layers themselves are in
``ops``. Nothing here imports PyTorch before a layer is computed: a program that is loaded needs the steps alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from yolox.kernels.int8.int8_ir import Floats

if TYPE_CHECKING:
    from torch import Tensor

    from yolox.kernels.int8.builder import Builder
    from yolox.kernels.int8.quantize import QuantizationParameters, RangeObserver


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

    def parameters(
        self, known: dict[str, QuantizationParameters], observer: RangeObserver, quantile: float
    ) -> QuantizationParameters:
        """Return what the bytes of the output, a feature, stand for.

        Args:
            known: Parameters of the features before.
            observer: The output's observed range.
            quantile: See ``RangeObserver.parameters``.
        """
        return observer.parameters(quantile)

    def build(self, builder: Builder) -> None:
        """Append the steps that compute the layer."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Network:
    """Layers in the order of execution.

    Args:
        inputs: Names of the inputs.
        layers: What is computed.
        outputs: Names of the outputs, matrices.
        constants: Matrices [rows, columns] that layers read.
        output_shapes: See ``int8_ir.Program``.
    """

    inputs: tuple[str, ...]
    layers: tuple[Layer, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, Floats]
    output_shapes: tuple[tuple[int, ...], ...] = ()

    def steps(self, arrays: Sequence[NDArray[Any]]) -> Iterator[tuple[Layer, tuple[Tensor, ...], Tensor]]:
        """Run a batch and yield each layer with its inputs and its output; no longer needed values are forgotten.

        Args:
            arrays: One array [batch, channels, height, width] for each input.
        """
        import torch

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
        results = []
        for name, shape in zip(self.outputs, self.output_shapes, strict=True):
            values = found[name] if len(shape) == 2 else found[name].transpose(1, 2)
            results.append(values.reshape(len(values), *shape).contiguous().numpy())
        return tuple(results)

    def shapes(self, arrays: Sequence[NDArray[Any]]) -> dict[str, tuple[int, ...]]:
        """Return the shape of every value, inputs included, without the batch axis, as one run shows it."""
        known = {name: tuple(array.shape[1:]) for name, array in zip(self.inputs, arrays, strict=True)}
        return known | {layer.output: tuple(value.shape[1:]) for layer, _, value in self.steps(arrays)}

    def readers(self) -> Counter[str]:
        """Return how often each value is read, by layers and as an output."""
        return Counter([*(name for layer in self.layers for name in layer.inputs), *self.outputs])

    def float_convolutions(self) -> frozenset[str]:
        """Return the outputs of convolutions that are written as rows of a matrix at once, never as bytes."""
        from yolox.kernels.int8.ops.convolution import Convolution
        from yolox.kernels.int8.ops.rows import Rows

        readers, writers = self.readers(), {layer.output: layer for layer in self.layers}
        found = set()
        for layer in self.layers:
            writer = writers.get(layer.inputs[0]) if isinstance(layer, Rows) else None
            if isinstance(writer, Convolution) and readers[writer.output] == 1 and writer.window.is_symmetric:
                found.add(writer.output)
        return frozenset(found)
