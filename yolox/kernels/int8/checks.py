"""Refuses programs whose steps do not fit together; the kernels believe what they are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from yolox.errors import ModelFileError
from yolox.kernels.int8.int8_ir import (
    Add,
    Arithmetic,
    Concatenate,
    Conv,
    Feature,
    Matrix,
    MaxPool,
    Pack,
    Program,
    Step,
    Unary,
    Upsample,
)

__all__ = ["check"]


def check(program: Program) -> None:
    """Return if every step's shapes fit, its features lie in their wholes, and only what is no constant is written.

    Raises:
        ModelFileError: With the number of the first step that does not.
    """
    for number, step in enumerate(program.steps):
        values = vars(step).values()
        lies = all(_lies_in_its_whole(value) for value in values if isinstance(value, Feature))
        writable = not (isinstance(step.output, Matrix) and step.output.constant is not None)
        fits = _pack(step, program.inputs) if isinstance(step, Pack) else _FITS[type(step)](step)
        if not (lies and writable and fits):
            raise ModelFileError(
                f"step {number} of the 8-bit program, {type(step).__name__}, does not fit what it reads or writes; "
                "the artifact is damaged or of another version: make it again"
            )


def _shape(feature: Feature) -> tuple[int, int, int]:
    return feature.height, feature.width, feature.channels


def _lies_in_its_whole(feature: Feature) -> bool:
    same = feature.zero.shape == feature.scale.shape == (feature.channels,)
    if feature.whole is None:
        return same
    inside = 0 <= feature.first <= feature.whole.channels - feature.channels
    return same and inside and _shape(feature)[:2] == _shape(feature.whole)[:2] and _lies_in_its_whole(feature.whole)


def _holds(matrix: Matrix, row: int, column: int, rows: int, columns: int) -> bool:
    return 0 <= row <= matrix.rows - rows and 0 <= column <= matrix.columns - columns


def _pack(step: Pack, inputs: tuple[tuple[int, int, int], ...]) -> bool:
    if not 0 <= step.input < len(inputs):
        return False
    channels, height, width = inputs[step.input]
    sizes = (step.output.height * step.block, step.output.width * step.block)
    count = channels * step.block**2
    return sizes == (height, width) and step.output.channels == count and sorted(step.order) == list(range(count))


def _conv(step: Conv) -> bool:
    if step.weight.ndim != 4:
        return False
    outs, ins, size, across = step.weight.shape
    height, width = (
        (length + 2 * step.padding - size) // step.stride + 1 for length in (step.input.height, step.input.width)
    )
    same = size == across and step.multiplier.shape == step.offset.shape == (outs,)
    same = same and ((outs, ins) == (step.input.channels, 1) if step.depthwise else ins == step.input.channels)
    if isinstance(step.output, Feature):
        return same and _shape(step.output) == (height, width, outs)
    return same and _holds(step.output, step.first_row, step.first_column, height * width, outs)


def _max_pool(step: MaxPool) -> bool:
    return _shape(step.input) == _shape(step.output) and step.size % 2 == 1


def _upsample(step: Upsample) -> bool:
    height, width, channels = _shape(step.input)
    return _shape(step.output) == (height * step.factor, width * step.factor, channels)


def _add(step: Add) -> bool:
    return _shape(step.left) == _shape(step.right) == _shape(step.output)


def _unary(step: Unary) -> bool:
    return (step.input.rows, step.input.columns) == (step.output.rows, step.output.columns)


def _arithmetic(step: Arithmetic) -> bool:
    widths = []
    for matrix, columns in ((step.left, step.left_columns), (step.right, step.right_columns)):
        first, last = columns or (0, matrix.columns)
        if not 0 <= first < last <= matrix.columns or matrix.rows not in (1, step.output.rows):
            return False
        widths.append(last - first)
    same = min(widths) in (1, max(widths))
    return same and _holds(step.output, 0, step.first_column, step.output.rows, max(widths))


def _concatenate(step: Concatenate) -> bool:
    return _holds(step.output, step.first_row, step.first_column, step.input.rows, step.input.columns)


_FITS: dict[type[Step], Callable[[Any], bool]] = {
    Conv: _conv,
    MaxPool: _max_pool,
    Upsample: _upsample,
    Add: _add,
    Unary: _unary,
    Arithmetic: _arithmetic,
    Concatenate: _concatenate,
}
