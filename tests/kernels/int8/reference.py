"""Runs a program plainly and exactly: sums of bytes in float64, everything behind them as the formulas say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from yolox.kernels.int8.int8_ir import Activation, Feature, Matrix, Program, Step
from yolox.kernels.int8.ops.concat import Concatenate
from yolox.kernels.int8.ops.conv_step import Conv
from yolox.kernels.int8.ops.elementwise import Add, Multiply
from yolox.kernels.int8.ops.matrices import Arithmetic, Function, Operation, Unary
from yolox.kernels.int8.ops.pixels import Pack
from yolox.kernels.int8.ops.pooling import AveragePool, MaxPool
from yolox.kernels.int8.ops.resize import Resize, Upsample

Values = NDArray[np.float64]
OPERATIONS = {
    Operation.ADD: np.add,
    Operation.SUBTRACT: np.subtract,
    Operation.MULTIPLY: np.multiply,
    Operation.DIVIDE: np.divide,
}


def interpret(program: Program, inputs: tuple[NDArray[Any], ...]) -> tuple[NDArray[np.float32], ...]:
    """Return what the program's outputs are, for inputs [B, C, H, W], float32 or uint8."""
    images = []
    for index in range(len(inputs[0])):
        memory = Memory()
        for step in program.steps:
            memory.run(step, tuple(array[index] for array in inputs))
        images.append([memory.matrix(output).copy() for output in program.outputs])
    results = (np.stack(parts) for parts in zip(*images, strict=True))
    return tuple(program.shaped(result, index) for index, result in enumerate(results))


class Memory:
    """The features and matrices of one image."""

    def __init__(self) -> None:
        self.arrays: dict[int, NDArray[Any]] = {}

    def bytes(self, feature: Feature) -> NDArray[np.uint8]:
        """Return the memory [height, width, channels] itself."""
        if feature.whole is not None:
            pixels = self.bytes(feature.whole)[feature.row :: feature.every, feature.column :: feature.every]
            channels = slice(feature.first, feature.first + feature.channels)
            return pixels[: feature.height, : feature.width, channels]
        shape = (feature.height, feature.width, feature.channels)
        return self.arrays.setdefault(id(feature), np.zeros(shape, np.uint8))

    def matrix(self, matrix: Matrix) -> NDArray[np.float32]:
        """Return the memory [rows, columns] itself."""
        if matrix.constant is not None:
            return matrix.constant
        return self.arrays.setdefault(id(matrix), np.zeros((matrix.rows, matrix.columns), np.float32))

    def store(self, feature: Feature, real: Values) -> None:
        """Round real values [height, width, channels] to the feature's bytes."""
        rounded = np.rint(real / feature.scale + feature.zero)
        self.bytes(feature)[:] = np.clip(rounded, 0, 255).astype(np.uint8)

    def real(self, feature: Feature) -> Values:
        """Return the values that the bytes stand for."""
        return feature.scale * (self.bytes(feature).astype(np.float64) - feature.zero)

    def run(self, step: Step, inputs: tuple[NDArray[Any], ...]) -> None:
        """Run one step."""
        match step:
            case Pack():
                self.pack(step, inputs[step.input])
            case Conv():
                self.conv(step)
            case MaxPool():
                self.bytes(step.output)[:] = self.windows(step, self.bytes(step.input)).max((-2, -1))
            case AveragePool():
                count: Any = step.height * step.width
                if not step.counts_padding:
                    count = self.windows(step, np.ones_like(self.bytes(step.input))).sum((-2, -1))
                self.store(step.output, self.windows(step, self.real(step.input)).sum((-2, -1)) / count)
            case Multiply():
                self.store(step.output, self.real(step.left) * self.real(step.right))
            case Resize():
                self.resize(step)
            case Upsample():
                self.bytes(step.output)[:] = self.bytes(step.input).repeat(step.factor, 0).repeat(step.factor, 1)
            case Add():
                self.store(step.output, self.real(step.left) + self.real(step.right))
            case _:
                self.run_on_matrices(step)

    def run_on_matrices(self, step: Step) -> None:
        """Run one step that reads and writes matrices."""
        match step:
            case Unary():
                value = self.matrix(step.input).astype(np.float64)
                self.matrix(step.output)[:] = np.exp(value) if step.function == Function.EXP else sigmoid(value)
            case Arithmetic():
                left = self.matrix(step.left)[:, slice(*(step.left_columns or (None,)))]
                right = self.matrix(step.right)[:, slice(*(step.right_columns or (None,)))]
                result = OPERATIONS[step.operation](left, right)
                columns = slice(step.first_column, step.first_column + result.shape[1])
                self.matrix(step.output)[:, columns] = result
            case Concatenate():
                self.write(step.output, self.matrix(step.input), step.first_row, step.first_column)

    def pack(self, step: Pack, image: NDArray[Any]) -> None:
        """Round an image [channels, height, width], its pixels rearranged."""
        channels, (height, width), block = len(image), (step.output.height, step.output.width), step.block
        blocks = image.astype(np.float64).reshape(channels, height, block, width, block)
        pixels = blocks.transpose(1, 3, 0, 2, 4).reshape(height, width, -1)
        self.store(step.output, pixels[:, :, list(step.order)])

    def windows(self, step: MaxPool | AveragePool, values: NDArray[Any]) -> NDArray[Any]:
        """Return what each window sees, [height, width, channels, height, width]; zeros outside."""
        size, margin = (step.height, step.width), 2 * max(step.height, step.width) + step.stride
        padded = np.pad(values, ((step.top, margin), (step.left, margin), (0, 0)))
        found = np.lib.stride_tricks.sliding_window_view(padded, size, (0, 1))[:: step.stride, :: step.stride]
        return found[: step.output.height, : step.output.width]

    def resize(self, step: Resize) -> None:
        """Mix rows, then columns."""
        values = self.bytes(step.input).astype(np.float64)
        down, across = (one.astype(np.float64)[:, None] for one in (step.row_shares, step.column_shares))
        (upper, lower), (left, right) = step.rows, step.columns
        values = values[upper] + (values[lower] - values[upper]) * down[:, None]
        values = values[:, left] + (values[:, right] - values[:, left]) * across[None]
        self.bytes(step.output)[:] = np.rint(values).astype(np.uint8)

    def conv(self, step: Conv) -> None:
        """Convolve; the sums are exact."""
        pad = step.border
        padded = np.pad(self.bytes(step.input).astype(np.float64), ((pad, pad), (pad, pad), (0, 0)))
        outside = np.pad(np.zeros((step.input.height, step.input.width), bool), pad, constant_values=True)
        padded[outside] = step.input.zero
        padded = padded[pad - step.top :, pad - step.left :]
        sums = torch.nn.functional.conv2d(
            torch.from_numpy(padded.transpose(2, 0, 1)[None].copy()),
            torch.from_numpy(step.weight.astype(np.float64)),
            stride=step.stride,
            dilation=step.dilation,
            groups=step.input.channels if step.depthwise else 1,
        )
        height, width = step.size
        exact = sums[0].numpy().astype(np.float64).transpose(1, 2, 0)[:height, :width]
        values = activate(exact * step.multiplier + step.offset, step.activation, step.alpha)
        if isinstance(step.output, Feature):
            self.store(step.output, values)
        else:
            self.write(step.output, values.reshape(-1, values.shape[2]), step.first_row, step.first_column)

    def write(self, output: Matrix, values: NDArray[Any], row: int, column: int) -> None:
        """Copy values [rows, columns] to a place in a matrix."""
        self.matrix(output)[row : row + values.shape[0], column : column + values.shape[1]] = values


def sigmoid(value: Values) -> Values:
    """Return 1 / (1 + exp(-value)) without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * value))


def activate(value: Values, activation: Activation, alpha: float) -> Values:
    """Return the activated values."""
    positive = np.maximum(value, 0.0)
    functions: dict[Activation, Callable[[], Values]] = {
        Activation.NONE: lambda: value,
        Activation.RELU: lambda: positive,
        Activation.LEAKY_RELU: lambda: np.where(value < 0, alpha * value, value),
        Activation.SILU: lambda: value * sigmoid(value),
        Activation.SIGMOID: lambda: sigmoid(value),
        Activation.CLIP: lambda: np.minimum(positive, alpha),
        Activation.HARD_SWISH: lambda: value * np.clip(value / 6 + 0.5, 0, 1),
        Activation.TANH: lambda: np.tanh(value),
        Activation.GELU: lambda: torch.nn.functional.gelu(torch.from_numpy(value)).numpy(),
    }
    return functions[activation]()
