"""Refuses programs with a number, an array or a step that does not fit; the kernels believe what they are given."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np

from yolox.errors import ModelFileError
from yolox.kernels.int8.int8_ir import LARGEST_SIDE, Activation, Feature, Matrix, Program, Step
from yolox.kernels.int8.ops.matrices import Function, Operation

LARGEST_ARENA = 2**31 - 1
"""Bytes of one image: kernels keep distances in it in 32 bits."""

_LARGEST = 2**24  # of any number
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
    written = {id(step.target) for step in program.steps}
    if not all(one.constant is not None or id(one) in written for one in program.outputs):
        raise damaged


def _program(program: Program) -> bool:
    shapes = all(len(shape) == 3 and all(map(_is_side, shape)) for shape in program.inputs)
    outputs = all(isinstance(matrix, Matrix) and _matrix(matrix) for matrix in program.outputs)
    outputs = outputs and all(map(_is_output_shape, program.output_shapes, program.outputs))
    outputs = outputs and len(program.output_shapes) in (0, len(program.outputs))
    share = isinstance(program.int8_share, float) and 0.0 <= program.int8_share <= 1.0
    return shapes and outputs and share and len(program.inputs) > 0 and len(program.steps) <= _MOST_STEPS


def _is_output_shape(shape: Any, matrix: Matrix) -> bool:
    """Whether a matrix can be returned as an array of this shape."""
    sound = isinstance(shape, tuple) and 0 < len(shape) < 4 and all(type(size) is int and size > 0 for size in shape)
    return sound and math.prod(shape) == matrix.rows * matrix.columns


def _step(step: Step, program: Program) -> bool:
    for field in fields(step):
        if not _TYPES[str(field.type)](getattr(step, field.name)):
            return False
    if isinstance(step.target, Matrix) and step.target.constant is not None:
        return False
    return step.fits(program.inputs)


# of one value


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= _LARGEST


def _is_number(value: object) -> bool:
    return type(value) is int and abs(value) <= _LARGEST


def _is_side(value: object) -> bool:
    return type(value) is int and 0 < value <= LARGEST_SIDE


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
        if not inside or not _places(value, value.whole):
            return False
        value = value.whole
    return False


def _places(part: Feature, whole: Feature) -> bool:
    """Whether the pixels of a part are pixels of the whole."""
    axes = ((part.height, part.row, whole.height), (part.width, part.column, whole.width))
    if part.every == 1:
        return all(size == length and first == 0 for size, first, length in axes)
    return all(part.every * (size - 1) + first < length and first < part.every for size, first, length in axes)


def _own_feature(value: Any) -> bool:
    if not (isinstance(value, Feature) and _is_side(value.height) and _is_side(value.width) and _is_count(value.first)):
        return False
    if not (_is_side(value.every) and _is_count(value.row) and _is_count(value.column)):
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
    "int": _is_number,
    "float": lambda value: type(value) is float and abs(value) <= _LARGEST,
    "bool": lambda value: type(value) is bool,
    "tuple[int, ...]": _is_numbers,
    "tuple[int, int] | None": lambda value: value is None or (_is_numbers(value) and len(value) == 2),
    "Feature": _feature,
    "Matrix": _matrix,
    "Feature | Matrix": lambda value: _matrix(value) if isinstance(value, Matrix) else _feature(value),
    "Floats": lambda value: _is_array(value, np.float32, 1),
    "NDArray[np.int32]": lambda value: _is_array(value, np.int32, 2),
    "NDArray[np.int8]": lambda value: _is_array(value, np.int8, 4),
    "Activation": lambda value: isinstance(value, Activation),
    "Function": lambda value: isinstance(value, Function),
    "Operation": lambda value: isinstance(value, Operation),
}
"""For each annotation of a step's field: whether a value is of that type and in range."""
