"""A network for one image as a list of steps: what the converter writes, the kernels run and an artifact stores.

Pixels are bytes in the layout [height, width, channels]. A byte ``q`` of channel ``c`` stands for the real value
``scale[c] * (q - zero[c])``. Behind the last convolutions values are float32 matrices [rows, columns], rows being the
pixels of all levels, columns the channels. A program is made for one height and width and runs any number of images.
The steps themselves are in ``ops``, each beside the layer that it computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from yolox.kernels.int8.bindings import Instructions
    from yolox.kernels.int8.memory import Memory


Floats: TypeAlias = NDArray[np.float32]

Fields: TypeAlias = dict[str, Any]
"""Values of a ``bindings.CStep`` by name: numbers, arrays, features and matrices."""

LARGEST_SIDE = 2**15
"""Pixels of a feature's height or width."""

LARGEST_WINDOW = 2**7
"""Pixels of a window's height or width, and of its stride, dilation and padding."""

_PADDED = 64


class Activation(IntEnum):
    """What follows a convolution, computed in float32 before the result is rounded to a byte."""

    NONE = 0
    RELU = 1
    LEAKY_RELU = 2
    """``alpha`` times the value below zero."""
    SILU = 3
    SIGMOID = 4
    CLIP = 5
    """Between 0 and ``alpha``: ReLU6 with an ``alpha`` of 6."""
    HARD_SWISH = 6
    TANH = 7
    GELU = 8


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
        every: Pixel (y, x) is the whole's pixel (every * y + row, every * x + column).
        row: See ``every``.
        column: See ``every``.
    """

    height: int
    width: int
    scale: Floats
    zero: NDArray[np.uint8]
    whole: Feature | None = None
    first: int = 0
    every: int = 1
    row: int = 0
    column: int = 0

    @property
    def channels(self) -> int:
        """Number of channels."""
        return len(self.scale)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        return self.height, self.width, self.channels

    def part(self, first: int, channels: int) -> Feature:
        """Return some of the channels."""
        chosen = slice(first, first + channels)
        return Feature(self.height, self.width, self.scale[chosen], self.zero[chosen], self, first)


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
class Step:
    """One operation of a program. Its fields are what an artifact stores of it."""

    @property
    def target(self) -> Feature | Matrix:
        """What the step writes."""
        output: Feature | Matrix = vars(self)["output"]
        return output

    @property
    def border(self) -> int:
        """Width in pixels of the border around the input that the step reads."""
        return 0

    @property
    def num_rows(self) -> int:
        """Rows that threads divide among themselves."""
        target = self.target
        return target.height if isinstance(target, Feature) else target.rows

    @property
    def reads_its_rows(self) -> bool:
        """Whether a row of the target is computed from the same row of all that is read, constants aside."""
        return False

    @property
    def stride(self) -> int:
        """Pixels of the input from one pixel of the output to the next."""
        return 1

    def fits(self, inputs: tuple[tuple[int, int, int], ...]) -> bool:
        """Whether the step stays inside of what it reads and writes; each field is known to be sound by itself.

        Args:
            inputs: Shape [channels, height, width] of each input of the program.
        """
        raise NotImplementedError

    def fields(self, memory: Memory, instructions: Instructions) -> Fields:
        """Return what the kernel reads, by the names of ``bindings.CStep``."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Program:
    """Steps in the order of execution.

    Args:
        inputs: Shape [channels, height, width] of each input.
        steps: What is done; nothing is read before it is written.
        outputs: The matrices that are returned, each [rows, columns].
        output_shapes: What is returned of each, without the batch axis. Two axes are rows and columns as they are
            in memory; one or three are a feature, whose matrix has a row for each pixel and a column for each channel:
            [channels] or [channels, height, width].
        int8_share: Share of the multiply-accumulates that are 8-bit ones.
    """

    inputs: tuple[tuple[int, int, int], ...]
    steps: tuple[Step, ...]
    outputs: tuple[Matrix, ...]
    output_shapes: tuple[tuple[int, ...], ...] = ()
    int8_share: float = 1.0

    def shaped(self, values: Floats, index: int) -> Floats:
        """Return the values [batch, rows, columns] of an output in its shape."""
        shape = self.output_shapes[index] if self.output_shapes else values.shape[1:]
        if len(shape) != 2:
            values = values.transpose(0, 2, 1)
        return np.ascontiguousarray(values.reshape(len(values), *shape))


def padded(values: NDArray[Any]) -> Floats:
    """Return a value per channel, with zeros up to whole vectors."""
    result = np.zeros(-(-len(values) // _PADDED) * _PADDED, np.float32)
    result[: len(values)] = values
    return result


def holds(matrix: Matrix, row: int, column: int, rows: int, columns: int) -> bool:
    """Whether a matrix has these rows and columns from a place on."""
    return 0 <= row <= matrix.rows - rows and 0 <= column <= matrix.columns - columns
