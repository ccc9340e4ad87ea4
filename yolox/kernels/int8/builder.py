"""Layers, codes and 8-bit weights as the steps of a program: where each value lies, and which copies are saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from yolox.errors import YoloxError
from yolox.kernels.int8 import float_ir as kinds
from yolox.kernels.int8.float_ir import Layer, Network
from yolox.kernels.int8.int8_ir import (
    Add,
    Arithmetic,
    Concatenate,
    Conv,
    Feature,
    Matrix,
    MaxPool,
    Operation,
    Pack,
    Program,
    Step,
    Unary,
    Upsample,
)
from yolox.kernels.int8.quantize import QuantizationParameters, QuantizedWeights

__all__ = ["build_program"]

MOVABLE = (kinds.Pixels, kinds.Convolution, kinds.Pool, kinds.Enlarge, kinds.Sum, kinds.Join)
"""Layers whose output may lie among the channels of a larger feature."""

OWNERS = (kinds.Rows, kinds.Stack, kinds.Map, kinds.Combine)
"""Layers whose output is a matrix of their own."""


@dataclass(frozen=True)
class _View:
    """Columns ``first ... last`` (not included) of a matrix."""

    matrix: Matrix
    first: int
    last: int

    @property
    def is_whole(self) -> bool:
        return (self.first, self.last) == (0, self.matrix.columns)


@dataclass(frozen=True)
class _Place:
    """Where in the output of another layer a value is written at once."""

    whole: str
    first_row: int = 0
    first: int = 0


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

    Raises:
        YoloxError: For layers in an order that no step computes.
    """
    return _Builder(network, parameters, weights, shapes).program()


class _Builder:
    def __init__(
        self,
        network: Network,
        parameters: Mapping[str, QuantizationParameters],
        weights: Mapping[str, QuantizedWeights],
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        self.network, self.parameters, self.weights, self.shapes = network, parameters, weights, shapes
        self.readers = network.readers()
        self.writers = {layer.output: layer for layer in network.layers}
        self.steps: list[Step] = []
        self.features: dict[str, Feature] = {}
        self.matrices: dict[str, Matrix] = {}
        self.views: dict[str, _View] = {}
        self.places: dict[str, _Place] = {}
        for layer in reversed(network.layers):
            if isinstance(layer, kinds.Join | kinds.Stack):
                self._place_parts(layer)

    def program(self) -> Program:
        """Return the program."""
        writers: dict[type[Layer], Callable[[Any], None]] = {
            kinds.Pixels: self._pixels,
            kinds.Convolution: self._convolution,
            kinds.Pool: self._pool,
            kinds.Enlarge: self._enlarge,
            kinds.Sum: self._sum,
            kinds.Join: self._join,
            kinds.Rows: self._rows,
            kinds.Stack: self._stack,
            kinds.Columns: self._columns,
            kinds.Map: self._map,
            kinds.Combine: self._combine,
        }
        for name, values in self.network.constants.items():
            rows, columns = values.shape
            self.views[name] = _View(Matrix(rows, columns, values), 0, columns)
        for layer in self.network.layers:
            writers[type(layer)](layer)
        outputs: list[Matrix] = []
        for name in self.network.outputs:
            view = self.views[name]
            taken = view.matrix.constant is not None or any(view.matrix is other for other in outputs)
            outputs.append(view.matrix if view.is_whole and not taken else self._copied(view))
        inputs = tuple((c, h, w) for c, h, w in (self.shapes[name] for name in self.network.inputs))
        return Program(inputs, tuple(self.steps), tuple(outputs))

    # where values lie

    def _place_parts(self, layer: kinds.Join | kinds.Stack) -> None:
        """Let the parts of a concatenation be written into it, each but once."""
        row = first = 0
        for name in layer.inputs:
            if name not in self.places and self._can_move(name, layer):
                self.places[name] = _Place(layer.output, row, first)
            if isinstance(layer, kinds.Stack) and layer.axis == 1:
                row += self.shapes[name][0]
            else:
                first += self.shapes[name][0 if isinstance(layer, kinds.Join) else 1]

    def _can_move(self, name: str, layer: Layer) -> bool:
        writer = self.writers.get(name)
        if isinstance(layer, kinds.Join):
            return isinstance(writer, MOVABLE)
        alone = self.readers[name] == 1
        beside = isinstance(layer, kinds.Stack) and layer.axis == 2
        return alone and (isinstance(writer, kinds.Rows) or (beside and isinstance(writer, kinds.Combine)))

    def _feature(self, name: str) -> Feature:
        """Return the memory of a feature that is written now or was written before."""
        if name not in self.features:
            _, height, width = self.shapes[name]
            code, place = self.parameters[name], self.places.get(name)
            whole = None if place is None else self._feature(place.whole)
            first = 0 if place is None else place.first
            self.features[name] = Feature(height, width, code.scale, code.zero, whole, first)
        return self.features[name]

    def _matrix(self, name: str) -> tuple[Matrix, int, int]:
        """Return the matrix that a value is written into, and its first row and column there."""
        place = self.places.get(name)
        owner = name if place is None else place.whole
        if owner not in self.matrices:
            rows, columns = self.shapes[owner]
            self.matrices[owner] = Matrix(rows, columns)
        return self.matrices[owner], 0 if place is None else place.first_row, 0 if place is None else place.first

    def _copied(self, view: _View) -> Matrix:
        """Return some columns as a matrix of their own."""
        copy = Matrix(view.matrix.rows, view.last - view.first)
        self._copy(view, copy, 0)
        return copy

    def _copy(self, view: _View, target: Matrix, first_column: int) -> None:
        """Copy columns into all rows of a matrix: multiplied by one, as copies always take whole matrices."""
        one = Matrix(1, 1, np.ones((1, 1), np.float32))
        columns = (view.first, view.last)
        self.steps.append(Arithmetic(view.matrix, one, target, Operation.MULTIPLY, columns, first_column=first_column))

    # what layers become

    def _pixels(self, layer: kinds.Pixels) -> None:
        index = self.network.inputs.index(layer.inputs[0])
        self.steps.append(Pack(index, self._feature(layer.output), layer.block, layer.order))

    def _convolution(self, layer: kinds.Convolution) -> None:
        if layer.output in self.parameters:
            self._convolve(layer, self._feature(layer.output), 0, 0)

    def _convolve(self, layer: kinds.Convolution, output: Feature | Matrix, row: int, column: int) -> None:
        numbers = self.weights[layer.output]
        self.steps.append(
            Conv(
                self._feature(layer.inputs[0]),
                output,
                numbers.weight,
                numbers.multiplier,
                numbers.offset,
                layer.stride,
                layer.padding,
                layer.activation,
                layer.depthwise,
                row,
                column,
            )
        )

    def _pool(self, layer: kinds.Pool) -> None:
        self.steps.append(MaxPool(self._feature(layer.inputs[0]), self._feature(layer.output), layer.size))

    def _enlarge(self, layer: kinds.Enlarge) -> None:
        self.steps.append(Upsample(self._feature(layer.inputs[0]), self._feature(layer.output), layer.factor))

    def _sum(self, layer: kinds.Sum) -> None:
        left, right = (self._feature(name) for name in layer.inputs)
        self.steps.append(Add(left, right, self._feature(layer.output)))

    def _join(self, layer: kinds.Join) -> None:
        """Copy the parts that lie elsewhere."""
        first = 0
        whole = self._feature(layer.output)
        for name in layer.inputs:
            channels, height, width = self.shapes[name]
            if self.places.get(name) == _Place(layer.output, 0, first):
                first += channels
                continue
            code = self.parameters[name]
            part = Feature(height, width, code.scale, code.zero, whole, first)
            self.steps.append(Upsample(self._feature(name), part, 1))
            first += channels

    def _rows(self, layer: kinds.Rows) -> None:
        writer = self.writers.get(layer.inputs[0])
        if not isinstance(writer, kinds.Convolution) or self.readers[writer.output] != 1:
            raise YoloxError(
                f"no 8-bit kernel for the rows of '{layer.inputs[0]}' (node '{layer.name}'): expected a convolution's "
                "result that nothing else reads. Use another method."
            )
        matrix, row, column = self._matrix(layer.output)
        self._convolve(writer, matrix, row, column)
        self.views[layer.output] = _View(matrix, 0, matrix.columns)

    def _stack(self, layer: kinds.Stack) -> None:
        matrix, _, _ = self._matrix(layer.output)
        self.views[layer.output] = _View(matrix, 0, matrix.columns)
        row = column = 0
        for name in layer.inputs:
            if self.places.get(name) != _Place(layer.output, row, column):
                view = self.views[name]
                part = view.matrix if view.is_whole else self._copied(view)
                self.steps.append(Concatenate(part, matrix, row, column))
            row += self.shapes[name][0] if layer.axis == 1 else 0
            column += self.shapes[name][1] if layer.axis == 2 else 0

    def _columns(self, layer: kinds.Columns) -> None:
        view = self.views[layer.inputs[0]]
        self.views[layer.output] = _View(view.matrix, view.first + layer.first, view.first + layer.last)

    def _map(self, layer: kinds.Map) -> None:
        view = self.views[layer.inputs[0]]
        # in place where nobody else reads the numbers, under whatever name
        alone = self.readers[layer.inputs[0]] == 1 and isinstance(self.writers.get(layer.inputs[0]), OWNERS)
        if not view.is_whole:
            matrix = self._copied(view)
            self.steps.append(Unary(matrix, matrix, layer.function))
        else:
            matrix = view.matrix if alone else Matrix(view.matrix.rows, view.matrix.columns)
            self.steps.append(Unary(view.matrix, matrix, layer.function))
        self.views[layer.output] = _View(matrix, 0, matrix.columns)

    def _combine(self, layer: kinds.Combine) -> None:
        left, right = (self.views[name] for name in layer.inputs)
        matrix, _, column = self._matrix(layer.output)
        columns = ((left.first, left.last), (right.first, right.last))
        self.steps.append(Arithmetic(left.matrix, right.matrix, matrix, layer.operation, *columns, column))
        self.views[layer.output] = _View(matrix, column, column + self.shapes[layer.output][1])
