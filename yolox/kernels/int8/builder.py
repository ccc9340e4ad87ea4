"""From a network with float weights and observed ranges to an int8 program: where each value lies, what is copied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from yolox.kernels.int8.float_ir import Layer, Network
from yolox.kernels.int8.int8_ir import Activation, Feature, Matrix, Program, Step
from yolox.kernels.int8.ops.concat import Join, Stack
from yolox.kernels.int8.ops.convolution import Convolution
from yolox.kernels.int8.ops.matrices import Arithmetic, Combine, Function, Map, Operation
from yolox.kernels.int8.ops.rows import Rows
from yolox.kernels.int8.ops.transposed import Interleave
from yolox.kernels.int8.quantize import (
    QuantizationParameters,
    QuantizedWeights,
    RangeObserver,
    quantization_parameters,
    quantize_weights,
)

OWNERS = (Rows, Stack, Map, Combine)
"""Layers whose output is a matrix of their own."""


@dataclass(frozen=True)
class View:
    """Columns ``first ... last`` (not included) of a matrix."""

    matrix: Matrix
    first: int
    last: int

    @property
    def is_whole(self) -> bool:
        """Whether these are all columns."""
        return (self.first, self.last) == (0, self.matrix.columns)


@dataclass(frozen=True)
class _Place:
    """Where in the output of another layer a value is written at once.

    Args:
        whole: The output's name.
        first_row: Of a matrix.
        first: Column of a matrix, channel of a feature.
        every: See ``Feature``.
        row: Likewise.
        column: Likewise.
    """

    whole: str
    first_row: int = 0
    first: int = 0
    every: int = 1
    row: int = 0
    column: int = 0


def build_program(
    network: Network,
    parameters: Mapping[str, QuantizationParameters],
    weights: Mapping[str, QuantizedWeights],
    shapes: Mapping[str, tuple[int, ...]],
) -> Program:
    """Return the program.

    Args:
        network: The layers.
        parameters: Quantization parameters of every feature.
        weights: Weights of every convolution, by the name of its output.
        shapes: Shape of every value, without the batch axis.
    """
    return Builder(network, parameters, weights, shapes).program()


class Builder:
    """What layers append their steps to.

    Args:
        network: See ``build_program``; so are the others.
        parameters: See there.
        weights: See there.
        shapes: See there.

    Attributes:
        steps: The steps so far.
        writers: The layer that writes each value.
        views: Where matrices lie, by name.
    """

    def __init__(
        self,
        network: Network,
        parameters: Mapping[str, QuantizationParameters],
        weights: Mapping[str, QuantizedWeights],
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        self.network, self.parameters, self.weights, self.shapes = network, parameters, weights, shapes
        self.writers = {layer.output: layer for layer in network.layers}
        self.steps: list[Step] = []
        self.views: dict[str, View] = {}
        self._readers = network.readers()
        self._features: dict[str, Feature] = {}
        self._matrices: dict[str, Matrix] = {}
        self._places: dict[str, _Place] = {}
        for layer in reversed(network.layers):
            if isinstance(layer, Join | Stack):
                self._place_parts(layer)
            elif isinstance(layer, Interleave):
                for number, name in enumerate(layer.inputs):
                    row, column = divmod(number, layer.every)
                    self._places[name] = _Place(layer.output, every=layer.every, row=row, column=column)

    def program(self) -> Program:
        """Return the program."""
        for name, values in self.network.constants.items():
            rows, columns = values.shape
            self.view_all(name, Matrix(rows, columns, values))
        for layer in self.network.layers:
            layer.build(self)
        outputs: list[Matrix] = []
        for name in self.network.outputs:
            view = self.views[name]
            taken = view.matrix.constant is not None or any(view.matrix is other for other in outputs)
            outputs.append(view.matrix if view.is_whole and not taken else self._copied(view))
        inputs = tuple((c, h, w) for c, h, w in (self.shapes[name] for name in self.network.inputs))
        return Program(inputs, tuple(self.steps), tuple(outputs), self.network.output_shapes)

    def _place_parts(self, layer: Join | Stack) -> None:
        """Let the parts of a concatenation be written into it, each but once."""
        row = first = 0
        for name in layer.inputs:
            if name not in self._places and self._can_move(name, layer):
                self._places[name] = _Place(layer.output, row, first)
            if isinstance(layer, Stack) and layer.axis == 1:
                row += self.shapes[name][0]
            else:
                first += self.shapes[name][0 if isinstance(layer, Join) else 1]

    def _can_move(self, name: str, layer: Layer) -> bool:
        if isinstance(layer, Join):
            return True
        writer = self.writers.get(name)
        alone = self._readers[name] == 1
        beside = isinstance(layer, Stack) and layer.axis == 2
        return alone and (isinstance(writer, Rows) or (beside and isinstance(writer, Combine)))

    def lies_in(self, name: str, whole: str, row: int, first: int) -> bool:
        """Whether a value is written into another at that place."""
        return self._places.get(name) == _Place(whole, row, first)

    def feature(self, name: str) -> Feature:
        """Return the memory of a feature that is written now or was written before."""
        if name not in self._features:
            _, height, width = self.shapes[name]
            code, place = self.parameters[name], self._places.get(name)
            if place is None:
                self._features[name] = Feature(height, width, code.scale, code.zero)
            else:
                whole = self.feature(place.whole)
                self._features[name] = Feature(
                    height, width, code.scale, code.zero, whole, place.first, place.every, place.row, place.column
                )
        return self._features[name]

    def matrix(self, name: str) -> tuple[Matrix, int, int]:
        """Return the matrix that a value is written into, and its first row and column there."""
        place = self._places.get(name)
        owner = name if place is None else place.whole
        if owner not in self._matrices:
            rows, columns = self.shapes[owner]
            self._matrices[owner] = Matrix(rows, columns)
        return self._matrices[owner], 0 if place is None else place.first_row, 0 if place is None else place.first

    def view_all(self, name: str, matrix: Matrix) -> None:
        """Tell that a value is a matrix."""
        self.views[name] = View(matrix, 0, matrix.columns)

    def view_some(self, name: str, matrix: Matrix, first: int) -> None:
        """Tell that a value lies in the columns of a matrix from ``first`` on."""
        self.views[name] = View(matrix, first, first + self.shapes[name][1])

    def view_columns(self, name: str, source: str, first: int, last: int) -> None:
        """Tell that a value is made of some columns of another."""
        view = self.views[source]
        self.views[name] = View(view.matrix, view.first + first, view.first + last)

    def whole_matrix(self, name: str) -> Matrix:
        """Return a matrix that is a value and nothing else, a copy where it lies among others."""
        view = self.views[name]
        return view.matrix if view.is_whole else self._copied(view)

    def may_overwrite(self, name: str, matrix: Matrix) -> bool:
        """Whether nobody else reads the numbers of ``whole_matrix``, under whatever name."""
        copied = matrix is not self.views[name].matrix
        return copied or (self._readers[name] == 1 and isinstance(self.writers.get(name), OWNERS))

    def _copied(self, view: View) -> Matrix:
        """Return some columns as a matrix of their own: multiplied by one, as copies always take whole matrices."""
        copy = Matrix(view.matrix.rows, view.last - view.first)
        one = Matrix(1, 1, np.ones((1, 1), np.float32))
        columns = (view.first, view.last)
        self.steps.append(Arithmetic(view.matrix, one, copy, Operation.MULTIPLY, columns))
        return copy


def convert(
    network: Network,
    observers: Mapping[str, RangeObserver],
    shapes: Mapping[str, tuple[int, ...]],
    quantile: float,
    *,
    in_pairs: bool,
) -> Program:
    """Return the int8 program of a network.

    Args:
        network: The layers.
        observers: What ``observe`` found, by the name of the value.
        shapes: Shape of every value, without the batch axis.
        quantile: See ``RangeObserver.parameters``.
        in_pairs: See ``quantize_weights``.
    """
    parameters = quantization_parameters(network, observers, quantile)
    weights = {
        layer.output: quantize_weights(
            layer, parameters[layer.inputs[0]], observers[layer.inputs[0]], in_pairs=in_pairs
        )
        for layer in network.layers
        if isinstance(layer, Convolution)
    }
    return build_program(network, parameters, weights, shapes)


def with_early_sigmoids(network: Network) -> Network:
    """Return the network with the sigmoid of a matrix moved into the convolutions that write it, where they all can."""
    writers = {layer.output: layer for layer in network.layers}
    readers = network.readers()

    def sources(name: str) -> list[Convolution] | None:
        """Return the convolutions that all numbers of a value come from, or ``None`` if others need these numbers."""
        layer = writers.get(name)
        if layer is None or readers[name] != 1:
            return None
        if isinstance(layer, Convolution):
            return [layer] if layer.activation is Activation.NONE else None
        if not isinstance(layer, Rows | Stack):
            return None
        found = [sources(part) for part in layer.inputs]
        return None if None in found else [source for part in found for source in part or ()]

    changed: dict[str, Layer] = {}
    renamed: dict[str, str] = {}
    for layer in network.layers:
        if isinstance(layer, Map) and layer.function is Function.SIGMOID:
            convolutions = sources(layer.inputs[0])
            if convolutions is not None:
                changed |= {one.output: replace(one, activation=Activation.SIGMOID) for one in convolutions}
                renamed[layer.inputs[0]] = layer.output
    kept = [changed.get(layer.output, layer) for layer in network.layers if layer.output not in set(renamed.values())]
    layers = tuple(replace(layer, output=renamed.get(layer.output, layer.output)) for layer in kept)
    return replace(network, layers=layers)
