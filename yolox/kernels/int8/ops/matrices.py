"""Functions and arithmetic of float32 matrices: the tail of a detector, behind its last convolutions."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from yolox.kernels.int8.bindings import Instructions, Kind
from yolox.kernels.int8.float_ir import Layer
from yolox.kernels.int8.int8_ir import Fields, Matrix, Step, holds
from yolox.kernels.int8.onnx_graph import Graph, Node
from yolox.kernels.int8.ops.affine import read_activation
from yolox.kernels.int8.ops.elementwise import read_arithmetic_of_features

if TYPE_CHECKING:
    from torch import Tensor

    from yolox.kernels.int8.builder import Builder
    from yolox.kernels.int8.memory import Memory


class Function(IntEnum):
    """A function of one matrix."""

    SIGMOID = 0
    EXP = 1


class Operation(IntEnum):
    """An operation of two matrices."""

    ADD = 0
    SUBTRACT = 1
    MULTIPLY = 2
    DIVIDE = 3


_OPERATIONS = {
    "Add": Operation.ADD,
    "Sub": Operation.SUBTRACT,
    "Mul": Operation.MULTIPLY,
    "Div": Operation.DIVIDE,
}
_FUNCTIONS = {"Sigmoid": Function.SIGMOID, "Exp": Function.EXP}


@dataclass(frozen=True, eq=False)
class Map(Layer):
    """A function of each number of a matrix."""

    function: Function

    def __call__(self, *values: Tensor) -> Tensor:
        """Return the shape that came."""
        return values[0].sigmoid() if self.function is Function.SIGMOID else values[0].exp()

    def build(self, builder: Builder) -> None:
        """Append the step, in place where nobody else reads the numbers, under whatever name."""
        source = builder.whole_matrix(self.inputs[0])
        matrix = source if builder.may_overwrite(self.inputs[0], source) else Matrix(source.rows, source.columns)
        builder.steps.append(Unary(source, matrix, self.function))
        builder.view_all(self.output, matrix)


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

    def build(self, builder: Builder) -> None:
        """Append the step."""
        left, right = (builder.views[name] for name in self.inputs)
        matrix, _, column = builder.matrix(self.output)
        columns = ((left.first, left.last), (right.first, right.last))
        builder.steps.append(Arithmetic(left.matrix, right.matrix, matrix, self.operation, *columns, column))
        builder.view_some(self.output, matrix, column)


@dataclass(frozen=True, eq=False)
class Unary(Step):
    """A function of each number; ``output`` may be ``input``."""

    input: Matrix
    output: Matrix
    function: Function

    @property
    def reads_its_rows(self) -> bool:
        """See ``Step``."""
        return True

    def fits(self, inputs: tuple[tuple[int, int, int], ...]) -> bool:
        """See ``Step``."""
        return (self.input.rows, self.input.columns) == (self.output.rows, self.output.columns)

    def fields(self, memory: Memory, instructions: Instructions) -> Fields:
        """See ``Step``."""
        return {"kind": Kind.UNARY, "left": self.input, "result": self.output, "choice": self.function}


@dataclass(frozen=True, eq=False)
class Arithmetic(Step):
    """An operation of two matrices of the same rows; one row or one column stands for all of them.

    Args:
        left: The first operand.
        right: The second operand.
        output: The result; may be an operand of the same size.
        operation: What is done.
        left_columns: First and last (not included) column of ``left`` that is meant; ``None`` for all.
        right_columns: Likewise.
        first_column: Column of ``output`` that the result begins at: results side by side are a concatenation.
    """

    left: Matrix
    right: Matrix
    output: Matrix
    operation: Operation
    left_columns: tuple[int, int] | None = None
    right_columns: tuple[int, int] | None = None
    first_column: int = 0

    @property
    def reads_its_rows(self) -> bool:
        """See ``Step``."""
        return all(one.constant is not None or one.rows == self.output.rows for one in (self.left, self.right))

    def fits(self, inputs: tuple[tuple[int, int, int], ...]) -> bool:
        """See ``Step``."""
        widths = []
        for matrix, columns in ((self.left, self.left_columns), (self.right, self.right_columns)):
            first, last = columns or (0, matrix.columns)
            if not 0 <= first < last <= matrix.columns or matrix.rows not in (1, self.output.rows):
                return False
            widths.append(last - first)
        same = min(widths) in (1, max(widths))
        return same and holds(self.output, 0, self.first_column, self.output.rows, max(widths))

    def fields(self, memory: Memory, instructions: Instructions) -> Fields:
        """See ``Step``."""
        left_first, left_last = self.left_columns or (0, self.left.columns)
        right_first, right_last = self.right_columns or (0, self.right.columns)
        columns = max(left_last - left_first, right_last - right_first)
        return {
            "kind": Kind.ARITHMETIC,
            "left": self.left,
            "right": self.right,
            "result": self.output,
            "choice": self.operation,
            "left_column": left_first,
            "right_column": right_first,
            "first_column": self.first_column,
            "columns": columns,
            "wide": (left_last - left_first == columns) + 2 * (right_last - right_first == columns),
        }


def read_function(graph: Graph, node: Node) -> None:
    """Read a Sigmoid or Exp of a matrix, or an activation of a feature."""
    if graph.rank(node.output) == 3 and node.kind in _FUNCTIONS:
        names = (graph.matrix(node.inputs[0], node),)
        graph.layers.append(Map(node.name, names, node.output, _FUNCTIONS[node.kind]))
        return
    read_activation(graph, node)


def read_arithmetic(graph: Graph, node: Node) -> None:
    """Read an Add, Sub, Mul or Div."""
    if graph.rank(node.output) != 3:
        read_arithmetic_of_features(graph, node)
        return
    names = (graph.matrix(node.inputs[0], node), graph.matrix(node.inputs[1], node))
    graph.layers.append(Combine(node.name, names, node.output, _OPERATIONS[node.kind]))
