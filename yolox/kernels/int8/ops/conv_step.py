"""The step of all convolutions: of ``convolution``, ``affine``, ``transposed`` and ``rows``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from yolox.kernels.int8.activation_table import activation_table
from yolox.kernels.int8.bindings import CFeature, Instructions, Kind
from yolox.kernels.int8.int8_ir import (
    LARGEST_WINDOW,
    Activation,
    Feature,
    Fields,
    Floats,
    Matrix,
    Step,
    holds,
    padded,
)
from yolox.kernels.int8.packing import dense_weight, depthwise_weight, paired_weight, tile_depth, tile_weight

if TYPE_CHECKING:
    from yolox.kernels.int8.memory import Memory


@dataclass(frozen=True, eq=False)
class Conv(Step):
    """A convolution: ``activation(multiplier * sum(byte * weight) + offset)``, then rounded to the output's bytes.

    The zeros of the input are part of ``offset``; beyond the border, bytes are the input's zeros. The window of output
    pixel (y, x) begins with pixel (stride * y - top, stride * x - left); the output's size says where it ends.

    Args:
        input: The feature read.
        output: A feature, or a matrix [height * width, channels] that gets the activated float32 values.
        weight: int8 [out, in, height, width]; [channels, 1, height, width] if depthwise.
        multiplier: float32 [out].
        offset: float32 [out].
        stride: Of rows and columns.
        dilation: Pixels from one of the window to the next.
        top: See above.
        left: See above.
        activation: What follows.
        alpha: The activation's parameter.
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
    dilation: int = 1
    top: int = 0
    left: int = 0
    activation: Activation = Activation.NONE
    alpha: float = 0.0
    depthwise: bool = False
    first_row: int = 0
    first_column: int = 0

    @property
    def reach(self) -> tuple[int, int]:
        """Rows and columns from the first of a window to its last."""
        return tuple((size - 1) * self.dilation for size in self.weight.shape[2:])  # type: ignore[return-value]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what is computed: a matrix has them as if the padding were the same on all sides."""
        if isinstance(self.output, Feature):
            return self.output.height, self.output.width
        begins = (self.input.height + 2 * self.top, self.input.width + 2 * self.left)
        height, width = (
            (length - reach - 1) // self.stride + 1 for length, reach in zip(begins, self.reach, strict=True)
        )
        return height, width

    @property
    def border(self) -> int:
        """See ``Step``."""
        last = [
            (count - 1) * self.stride - before + reach - (length - 1)
            for count, before, reach, length in zip(
                self.size, (self.top, self.left), self.reach, (self.input.height, self.input.width), strict=True
            )
        ]
        return max(0, self.top, self.left, *last)

    @property
    def num_rows(self) -> int:
        """See ``Step``."""
        return self.size[0]

    @property
    def reads_its_rows(self) -> bool:
        """See ``Step``."""
        same = self.weight.shape[2] == 1 and self.stride == 1 and self.input.height == self.num_rows
        return same and self.border == 0 and self.top == 0

    def fits(self, inputs: tuple[tuple[int, int, int], ...]) -> bool:
        """See ``Step``."""
        outs, ins, *sizes = self.weight.shape
        limited = (self.stride, self.dilation, *sizes)
        if not all(0 < one <= LARGEST_WINDOW for one in limited) or min(self.size) < 1:
            return False
        if max(abs(self.top), abs(self.left)) > LARGEST_WINDOW or self.border > LARGEST_WINDOW:
            return False
        first = (-self.top, -self.left)  # a window that begins inside must not begin behind the end
        if any(at >= length for at, length in zip(first, (self.input.height, self.input.width), strict=True)):
            return False
        same = self.multiplier.shape == self.offset.shape == (outs,)
        same = same and ((outs, ins) == (self.input.channels, 1) if self.depthwise else ins == self.input.channels)
        if isinstance(self.output, Feature):
            return same and self.output.channels == outs
        height, width = self.size
        return same and holds(self.output, self.first_row, self.first_column, height * width, outs)

    def fields(self, memory: Memory, instructions: Instructions) -> Fields:
        """See ``Step``."""
        fields: Fields = {
            "kind": Kind.DEPTHWISE if self.depthwise else Kind.DENSE,
            "input": self.input,
            "height": self.weight.shape[2],
            "width": self.weight.shape[3],
            "stride": self.stride,
            "dilation": self.dilation,
            "above": self.top,
            "before": self.left,
            "choice": self.activation,
            "alpha": self.alpha,
        }
        fields |= self._packed_weight(memory, instructions)
        multiplier, offset = padded(self.multiplier), padded(self.offset)
        if isinstance(self.output, Matrix):
            place = {"first_row": self.first_row, "first_column": self.first_column, "result": self.output}
            computed = CFeature(0, 0, 0, *self.size, len(self.weight), 0)
            return fields | place | {"to_matrix": 1, "output": computed, "multiplier": multiplier, "offset": offset}
        fields["output"] = self.output
        inverse, zero = padded(1.0 / self.output.scale), padded(self.output.zero)
        if self._rounding_is_the_activation():
            return fields | {"linear": 1, "multiplier": multiplier * inverse, "offset": offset * inverse + zero}
        table = activation_table(self.activation, self.output, self.multiplier, self.offset) or 0
        rounding = {"multiplier": multiplier, "offset": offset, "inverse": inverse, "zero": zero}
        return fields | rounding | {"activation_table": table}

    def _rounding_is_the_activation(self) -> bool:
        """Whether the bytes 0 and 255 are the activation's bounds, or beyond them."""
        assert isinstance(self.output, Feature)
        if self.activation is Activation.NONE:
            return True
        if self.activation is Activation.RELU:
            return not self.output.zero.any()
        if self.activation is Activation.CLIP:
            return not self.output.zero.any() and bool((self.alpha / self.output.scale).min() >= 254.5)
        return False

    def _packed_weight(self, memory: Memory, instructions: Instructions) -> Fields:
        if self.depthwise:
            return {"weight": depthwise_weight(self.weight)}
        place = memory.feature(self.input)
        if instructions is Instructions.AMX:
            run = -(-self.input.channels // 16) * 16  # the matrix unit multiplies a whole row of the window if it can
            depth = tile_depth(run * self.weight.shape[3] if place.pixel == run and self.dilation == 1 else run)
            if depth:
                return {"weight": tile_weight(self.weight), "tiles": depth}
        if instructions not in {Instructions.AVX2, Instructions.AVX_VNNI}:
            return {"weight": dense_weight(self.weight)}
        row, pixel = place.row * self.dilation, place.pixel * self.dilation
        weight, order = paired_weight(self.weight, row, pixel, split=instructions is Instructions.AVX2)
        return {"weight": weight, "order": order}
