"""A network for one image as a list of steps: what the converter writes, the kernels run and an artifact stores.

Pixels are bytes in the layout [height, width, channels]. A byte ``q`` of channel ``c`` stands for the real value
``scale[c] * (q - zero[c])``. Behind the last convolutions values are float32 matrices [rows, columns], rows being the
pixels of all levels, columns the channels. A program is made for one height and width and runs any number of images.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Activation",
    "Add",
    "Arithmetic",
    "Concatenate",
    "Conv",
    "Feature",
    "Floats",
    "Function",
    "Matrix",
    "MaxPool",
    "Operation",
    "Pack",
    "Program",
    "Step",
    "Unary",
    "Upsample",
]

Floats: TypeAlias = NDArray[np.float32]


class Activation(IntEnum):
    """What follows a convolution, computed in float32 before the result is rounded to a byte."""

    NONE = 0
    RELU = 1
    LEAKY_RELU = 2
    """Slope 0.1 below zero."""
    SILU = 3
    SIGMOID = 4


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


@dataclass(frozen=True, eq=False)
class Feature:
    """Bytes [height, width, channels] of one image.

    Args:
        height: Rows.
        width: Columns.
        scale: [channels], float32.
        zero: [channels], uint8: the byte that stands for 0; padding has this value.
        whole: The feature whose channels ``first ... first + channels`` these are: a concatenation is such a whole, its
            parts are written by different steps, it has no step of its own. ``None`` for memory of its own.
        first: See ``whole``.
    """

    height: int
    width: int
    scale: Floats
    zero: NDArray[np.uint8]
    whole: Feature | None = None
    first: int = 0

    @property
    def channels(self) -> int:
        """Number of channels."""
        return len(self.scale)


@dataclass(frozen=True, eq=False)
class Matrix:
    """Float32 values [rows, columns] of one image.

    Args:
        rows: Rows.
        columns: Columns.
        constant: The values if they are the same for every image; no step writes such a matrix.
    """

    rows: int
    columns: int
    constant: Floats | None = None


@dataclass(frozen=True, eq=False)
class Pack:
    """The input [channels, height, width], float32 or uint8, is rounded to the output's bytes.

    Args:
        input: Index of the program's input.
        output: ``channels * block * block`` channels, height and width divided by ``block``.
        block: 1, or 2 for space-to-depth: channel ``order[i]`` of the list (channel, row, column in the block, all
            combinations in C order) becomes channel ``i``.
        order: A permutation.
    """

    input: int
    output: Feature
    block: int
    order: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Conv:
    """A convolution: ``activation(multiplier * sum(byte * weight) + offset)``, then rounded to the output's bytes.

    The zeros of the input are part of ``offset``; beyond the border, bytes are the input's zeros.

    Args:
        input: The feature read.
        output: A feature, or a matrix [height * width, channels] that gets the activated float32 values.
        weight: int8 [out, in, height, width]; [channels, 1, height, width] if depthwise.
        multiplier: float32 [out].
        offset: float32 [out].
        stride: Step over rows and columns.
        padding: Rows and columns of zeros at every side.
        activation: What follows.
        depthwise: Each channel on its own.
        first_row: Where a matrix as output is written from: several levels share one matrix.
        first_column: Likewise for columns.
    """

    input: Feature
    output: Feature | Matrix
    weight: NDArray[np.int8]
    multiplier: Floats
    offset: Floats
    stride: int = 1
    padding: int = 0
    activation: Activation = Activation.NONE
    depthwise: bool = False
    first_row: int = 0
    first_column: int = 0


@dataclass(frozen=True, eq=False)
class MaxPool:
    """The largest byte of a window of odd ``size`` around each pixel, stride 1; scale and zero of both are the same."""

    input: Feature
    output: Feature
    size: int


@dataclass(frozen=True, eq=False)
class Upsample:
    """Each pixel ``factor`` times in each direction; ``factor`` 1 is a copy; scale and zero of both are the same."""

    input: Feature
    output: Feature
    factor: int


@dataclass(frozen=True, eq=False)
class Add:
    """The sum of the real values of two features, rounded to the output's bytes."""

    left: Feature
    right: Feature
    output: Feature


@dataclass(frozen=True, eq=False)
class Unary:
    """A function of each number; ``output`` may be ``input``."""

    input: Matrix
    output: Matrix
    function: Function


@dataclass(frozen=True, eq=False)
class Arithmetic:
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


@dataclass(frozen=True, eq=False)
class Concatenate:
    """Copies ``input`` into ``output`` from that row and column on: for what cannot be written there at once."""

    input: Matrix
    output: Matrix
    first_row: int = 0
    first_column: int = 0


Step: TypeAlias = Pack | Conv | MaxPool | Upsample | Add | Unary | Arithmetic | Concatenate


@dataclass(frozen=True, eq=False)
class Program:
    """Steps in the order of execution.

    Args:
        inputs: Shape [channels, height, width] of each input.
        steps: What is done; nothing is read before it is written.
        outputs: The matrices that are returned, each [rows, columns].
        int8_share: Share of the multiply-accumulates that are 8-bit ones.
    """

    inputs: tuple[tuple[int, int, int], ...]
    steps: tuple[Step, ...]
    outputs: tuple[Matrix, ...]
    int8_share: float = 1.0
