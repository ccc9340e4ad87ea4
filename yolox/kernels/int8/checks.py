"""Refuses programs with a number, an array or a step that does not fit; the kernels believe what they are given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np

from yolox.errors import ModelFileError
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

__all__ = ["LARGEST_ARENA", "check"]

LARGEST_ARENA = 2**31 - 1
"""Bytes of one image: kernels keep distances in it in 32 bits."""

_LARGEST = 2**24  # of any number
_LARGEST_SIDE = 2**15  # pixels
_MOST_STEPS = 20_000
_DEEPEST = 64  # parts of parts
_SMALLEST_SCALE, _LARGEST_SCALE = 1e-20, 1e20


def check(program: Program) -> None:
    """Return if every number is in range, every array of its type and shape, and every step fits what it touches.

    Raises:
        ModelFileError: With the number of the first step that does not.
    """
    damaged = ModelFileError("the 8-bit program is damaged or of another version; make it again")
    try:
        fits = _program(program)
    except (TypeError, ValueError, AttributeError, OverflowError):  # values of unforeseen kinds do not even compare
        fits = False
    if not fits:
        raise damaged
    for number, step in enumerate(program.steps):
        try:
            fits = _step(step, program)
        except (TypeError, ValueError, AttributeError, OverflowError):
            fits = False
        if not fits:
            raise ModelFileError(
                f"step {number} of the 8-bit program, {type(step).__name__}, does not fit what it reads or writes; "
                "the artifact is damaged or of another version: make it again"
            )
    written = {id(step.output) for step in program.steps}
    if not all(one.constant is not None or id(one) in written for one in program.outputs):
        raise damaged


def _program(program: Program) -> bool:
    shapes = all(len(shape) == 3 and all(map(_is_side, shape)) for shape in program.inputs)
    outputs = all(isinstance(matrix, Matrix) and _matrix(matrix) for matrix in program.outputs)
    share = isinstance(program.int8_share, float) and 0.0 <= program.int8_share <= 1.0
    return shapes and outputs and share and len(program.inputs) > 0 and len(program.steps) <= _MOST_STEPS


def _step(step: Step, program: Program) -> bool:
    for field in fields(step):
        if not _TYPES[str(field.type)](getattr(step, field.name)):
            return False
    if isinstance(step.output, Matrix) and step.output.constant is not None:
        return False
    return _pack(step, program.inputs) if isinstance(step, Pack) else _FITS[type(step)](step)


# of one value


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= _LARGEST


def _is_side(value: object) -> bool:
    return type(value) is int and 0 < value <= _LARGEST_SIDE


def _is_array(value: object, dtype: type[np.generic], dimensions: int) -> bool:
    if not (isinstance(value, np.ndarray) and value.dtype == dtype and value.ndim == dimensions):
        return False
    return 0 < value.size <= 2 * _LARGEST and bool(np.isfinite(value).all())


def _is_numbers(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) <= _LARGEST and all(map(_is_count, value))


def _feature(value: Any) -> bool:
    """Whether a feature is sound, and lies in its whole, which is sound."""
    for _ in range(_DEEPEST):
        if not _own_feature(value):
            return False
        if value.whole is None:
            return True
        inside = value.first <= value.whole.channels - value.channels
        if not inside or _shape(value)[:2] != _shape(value.whole)[:2]:
            return False
        value = value.whole
    return False


def _own_feature(value: Any) -> bool:
    if not (isinstance(value, Feature) and _is_side(value.height) and _is_side(value.width) and _is_count(value.first)):
        return False
    if not (_is_array(value.scale, np.float32, 1) and _is_array(value.zero, np.uint8, 1)):
        return False
    same = value.scale.shape == value.zero.shape
    return bool(same and value.scale.min() >= _SMALLEST_SCALE and value.scale.max() <= _LARGEST_SCALE)


def _matrix(value: Any) -> bool:
    if not (isinstance(value, Matrix) and _is_count(value.rows) and _is_count(value.columns)):
        return False
    if not 0 < value.rows * value.columns * 4 <= LARGEST_ARENA:
        return False
    constant = value.constant
    return constant is None or (_is_array(constant, np.float32, 2) and constant.shape == (value.rows, value.columns))


_TYPES: dict[str, Callable[[Any], bool]] = {
    "int": _is_count,
    "bool": lambda value: type(value) is bool,
    "tuple[int, ...]": _is_numbers,
    "tuple[int, int] | None": lambda value: value is None or (_is_numbers(value) and len(value) == 2),
    "Feature": _feature,
    "Matrix": _matrix,
    "Feature | Matrix": lambda value: _matrix(value) if isinstance(value, Matrix) else _feature(value),
    "Floats": lambda value: _is_array(value, np.float32, 1),
    "NDArray[np.int8]": lambda value: _is_array(value, np.int8, 4),
    "Activation": lambda value: isinstance(value, Activation),
    "Function": lambda value: isinstance(value, Function),
    "Operation": lambda value: isinstance(value, Operation),
}
"""For each annotation of a step's field: whether a value is of that type and in range."""


# of a step whose values are sound


def _shape(feature: Feature) -> tuple[int, int, int]:
    return feature.height, feature.width, feature.channels


def _holds(matrix: Matrix, row: int, column: int, rows: int, columns: int) -> bool:
    return 0 <= row <= matrix.rows - rows and 0 <= column <= matrix.columns - columns


def _pack(step: Pack, inputs: tuple[tuple[int, int, int], ...]) -> bool:
    if not 0 <= step.input < len(inputs) or not 0 < step.block <= _LARGEST_SIDE:
        return False
    channels, height, width = inputs[step.input]
    sizes = (step.output.height * step.block, step.output.width * step.block)
    count = channels * step.block**2
    same = sizes == (height, width) and step.output.channels == count == len(step.order)
    return same and sorted(step.order) == list(range(count))


def _conv(step: Conv) -> bool:
    outs, ins, size, across = step.weight.shape
    if step.stride < 1 or not 0 < size <= 128 or step.padding >= size:
        return False
    lengths = [length + 2 * step.padding - size for length in (step.input.height, step.input.width)]
    if min(lengths) < 0:
        return False
    height, width = (length // step.stride + 1 for length in lengths)
    same = size == across and step.multiplier.shape == step.offset.shape == (outs,)
    same = same and ((outs, ins) == (step.input.channels, 1) if step.depthwise else ins == step.input.channels)
    if isinstance(step.output, Feature):
        return same and _shape(step.output) == (height, width, outs)
    return same and _holds(step.output, step.first_row, step.first_column, height * width, outs)


def _max_pool(step: MaxPool) -> bool:
    return _shape(step.input) == _shape(step.output) and step.size % 2 == 1 and step.size <= _LARGEST_SIDE


def _upsample(step: Upsample) -> bool:
    height, width, channels = _shape(step.input)
    return step.factor > 0 and _shape(step.output) == (height * step.factor, width * step.factor, channels)


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
    apart = step.input is not step.output
    return apart and _holds(step.output, step.first_row, step.first_column, step.input.rows, step.input.columns)


_FITS: dict[type[Step], Callable[[Any], bool]] = {
    Conv: _conv,
    MaxPool: _max_pool,
    Upsample: _upsample,
    Add: _add,
    Unary: _unary,
    Arithmetic: _arithmetic,
    Concatenate: _concatenate,
}
