"""Concatenations, of the channels of features and of the rows or columns of matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from yolox.kernels.int8.bindings import Instructions, Kind
from yolox.kernels.int8.float_ir import Layer
from yolox.kernels.int8.int8_ir import Fields, Matrix, Step, holds
from yolox.kernels.int8.onnx_graph import Graph, Node
from yolox.kernels.int8.ops.resize import Upsample
from yolox.kernels.int8.quantize import QuantizationParameters, RangeObserver

if TYPE_CHECKING:
    from torch import Tensor

    from yolox.kernels.int8.builder import Builder
    from yolox.kernels.int8.memory import Memory


@dataclass(frozen=True, eq=False)
class Join(Layer):
    """Features side by side as channels of one."""

    def __call__(self, *values: Tensor) -> Tensor:
        """Return [batch, all channels, height, width]."""
        import torch

        return torch.cat(values, 1)

    def parameters(
        self, known: dict[str, QuantizationParameters], observer: RangeObserver, quantile: float
    ) -> QuantizationParameters:
        """Return those of the inputs, side by side."""
        parts = [known[name] for name in self.inputs]
        scale, zero = (np.concatenate([getattr(part, name) for part in parts]) for name in ("scale", "zero"))
        return QuantizationParameters(scale, zero)

    def build(self, builder: Builder) -> None:
        """Copy the parts that lie elsewhere."""
        whole, first = builder.feature(self.output), 0
        for name in self.inputs:
            channels = builder.shapes[name][0]
            if not builder.lies_in(name, self.output, 0, first):
                builder.steps.append(Upsample(builder.feature(name), whole.part(first, channels), 1))
            first += channels


@dataclass(frozen=True, eq=False)
class Stack(Layer):
    """Matrices one below the other (``axis`` 1) or side by side (``axis`` 2)."""

    axis: int

    def __call__(self, *values: Tensor) -> Tensor:
        """Return one matrix."""
        import torch

        return torch.cat(values, self.axis)

    def build(self, builder: Builder) -> None:
        """Copy the parts that lie elsewhere."""
        matrix, _, _ = builder.matrix(self.output)
        builder.view_all(self.output, matrix)
        row = column = 0
        for name in self.inputs:
            if not builder.lies_in(name, self.output, row, column):
                builder.steps.append(Concatenate(builder.whole_matrix(name), matrix, row, column))
            row += builder.shapes[name][0] if self.axis == 1 else 0
            column += builder.shapes[name][1] if self.axis == 2 else 0


@dataclass(frozen=True, eq=False)
class Concatenate(Step):
    """Copies ``input`` into ``output`` from that row and column on: for what cannot be written there at once."""

    input: Matrix
    output: Matrix
    first_row: int = 0
    first_column: int = 0

    @property
    def num_rows(self) -> int:
        """See ``Step``."""
        return self.input.rows

    def fits(self, inputs: tuple[tuple[int, int, int], ...]) -> bool:
        """See ``Step``."""
        apart = self.input is not self.output
        return apart and holds(self.output, self.first_row, self.first_column, self.input.rows, self.input.columns)

    def fields(self, memory: Memory, instructions: Instructions) -> Fields:
        """See ``Step``."""
        return {
            "kind": Kind.COPY,
            "left": self.input,
            "result": self.output,
            "first_row": self.first_row,
            "first_column": self.first_column,
        }


def read_concat(graph: Graph, node: Node) -> None:
    """Read a Concat."""
    rank, axis = graph.rank(node.output), int(node.attributes["axis"])
    axis += rank if axis < 0 else 0
    if rank == 4 and axis == 1:
        names = tuple(graph.feature(name, node) for name in node.inputs)
        graph.layers.append(Join(node.name, names, node.output))
    elif rank == 3 and axis in (1, 2):
        names = tuple(graph.matrix(name, node) for name in node.inputs)
        graph.layers.append(Stack(node.name, names, node.output, axis))
    else:
        raise node.refusal(f"axis {axis} of {rank}; expected channels of features, or rows or columns of matrices")
