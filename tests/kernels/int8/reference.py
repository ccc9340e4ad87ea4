"""Runs a program plainly and exactly: sums of bytes in float64, everything behind them as the formulas say."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from yolox.kernels.int8.int8_ir import (
    Activation,
    Add,
    Arithmetic,
    Concatenate,
    Conv,
    Feature,
    Function,
    Matrix,
    MaxPool,
    Operation,
    Pack,
    Program,
    Step,
    Unary,
    Upsample,
)

Values = NDArray[np.float64]
OPERATIONS = {
    Operation.ADD: np.add,
    Operation.SUBTRACT: np.subtract,
    Operation.MULTIPLY: np.multiply,
    Operation.DIVIDE: np.divide,
}


def interpret(program: Program, inputs: tuple[NDArray[Any], ...]) -> tuple[NDArray[np.float32], ...]:
    """Return what the program's outputs are, each [B, rows, columns], for inputs [B, C, H, W], float32 or uint8."""
    images = []
    for index in range(len(inputs[0])):
        memory = Memory()
        for step in program.steps:
            memory.run(step, tuple(array[index] for array in inputs))
        images.append([memory.matrix(output).copy() for output in program.outputs])
    return tuple(np.stack(parts) for parts in zip(*images, strict=True))


class Memory:
    """The features and matrices of one image."""

    def __init__(self) -> None:
        self.arrays: dict[int, NDArray[Any]] = {}

    def bytes(self, feature: Feature) -> NDArray[np.uint8]:
        """Return the memory [height, width, channels] itself."""
        if feature.whole is not None:
            return self.bytes(feature.whole)[:, :, feature.first : feature.first + feature.channels]
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
                half = step.size // 2
                padded = np.pad(self.bytes(step.input), ((half, half), (half, half), (0, 0)))
                windows = np.lib.stride_tricks.sliding_window_view(padded, (step.size, step.size), (0, 1))
                self.bytes(step.output)[:] = windows.max((-2, -1))
            case Upsample():
                self.bytes(step.output)[:] = self.bytes(step.input).repeat(step.factor, 0).repeat(step.factor, 1)
            case Add():
                self.store(step.output, self.real(step.left) + self.real(step.right))
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

    def conv(self, step: Conv) -> None:
        """Convolve; the sums are exact."""
        pad = step.padding
        padded = np.pad(self.bytes(step.input).astype(np.float64), ((pad, pad), (pad, pad), (0, 0)))
        outside = np.pad(np.zeros((step.input.height, step.input.width), bool), pad, constant_values=True)
        padded[outside] = step.input.zero
        sums = torch.nn.functional.conv2d(
            torch.from_numpy(padded.transpose(2, 0, 1)[None].copy()),
            torch.from_numpy(step.weight.astype(np.float64)),
            stride=step.stride,
            groups=step.input.channels if step.depthwise else 1,
        )
        exact = sums[0].numpy().astype(np.float64).transpose(1, 2, 0)
        values = activate(exact * step.multiplier + step.offset, step.activation)
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


def activate(value: Values, activation: Activation) -> Values:
    """Return the activated values."""
    match activation:
        case Activation.RELU:
            return np.maximum(value, 0.0)
        case Activation.LEAKY_RELU:
            return np.where(value < 0, 0.1 * value, value)
        case Activation.SILU:
            return value * sigmoid(value)
        case Activation.SIGMOID:
            return sigmoid(value)
    return value
