"""Turns the steps of a program into what the kernels read: addresses, packed weights, factors per channel."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from yolox.kernels.int8.bindings import CFeature, CStep, Instructions, Kind
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
from yolox.kernels.int8.memory import Memory
from yolox.kernels.int8.packing import dense_weight, depthwise_weight, paired_weight
from yolox.kernels.int8.silu_table import silu_table

__all__ = ["lower"]

_VECTOR = 16
_PADDED = 64

Fields: TypeAlias = dict[str, Any]


def lower(program: Program, memory: Memory, instructions: Instructions) -> tuple[ctypes.Array[CStep], list[Any]]:
    """Return the steps and the objects whose addresses they hold, which must live as long."""
    lowered: list[CStep] = []
    alive: list[Any] = []
    for index, step in enumerate(program.steps):
        for feature, border in memory.born(index):
            lowered.append(_step({**_border(feature, border), "output": feature}, memory, alive))
        fields = _FIELDS[type(step)](step)
        if isinstance(step, Conv):
            fields |= _weight(step, memory, instructions)
        lowered.append(_step(fields, memory, alive))
    return (CStep * len(lowered))(*lowered), alive


def _step(fields: Fields, memory: Memory, alive: list[Any]) -> CStep:
    values: Fields = {}
    for name, value in fields.items():
        if isinstance(value, Feature):
            values[name] = memory.feature(value)
        elif isinstance(value, Matrix):
            values[name] = memory.matrix(value)
        elif isinstance(value, np.ndarray):
            alive.append(value)
            values[name] = value.ctypes.data
        elif isinstance(value, tuple):
            alive.append(value)
            values[name] = ctypes.addressof(value[0])
        else:
            values[name] = value if isinstance(value, CFeature) else int(value)
    return CStep(**values)


def _border(feature: Feature, border: int) -> Fields:
    pattern = np.zeros(-(-feature.channels // _VECTOR) * _VECTOR, np.uint8)
    pattern[: feature.channels] = feature.zero
    return {"kind": Kind.BORDER, "padding": border, "weight": pattern}


def _padded(values: NDArray[Any]) -> NDArray[np.float32]:
    """Return a value per channel, with zeros up to whole vectors."""
    result = np.zeros(-(-len(values) // _PADDED) * _PADDED, np.float32)
    result[: len(values)] = values
    return result


def _rounding(feature: Feature) -> Fields:
    return {"inverse": _padded(1.0 / feature.scale), "zero": _padded(feature.zero)}


def _pack(step: Pack) -> Fields:
    order = np.array(step.order, np.int32)
    return {"kind": Kind.PACK, "output": step.output, "size": step.block, "index": step.input, "order": order} | (
        _rounding(step.output)
    )


def _conv(step: Conv) -> Fields:
    fields: Fields = {
        "kind": Kind.DEPTHWISE if step.depthwise else Kind.DENSE,
        "input": step.input,
        "size": step.weight.shape[2],
        "stride": step.stride,
        "padding": step.padding,
        "choice": step.activation,
        "multiplier": _padded(step.multiplier),
        "offset": _padded(step.offset),
    }
    if isinstance(step.output, Feature):
        smooth = silu_table(step.activation, step.output, step.multiplier, step.offset)
        return fields | {"output": step.output, "silu_table": smooth or 0} | _rounding(step.output)
    height, width = ((length + 2 * step.padding - step.weight.shape[2]) // step.stride + 1 for length in _size(step))
    fields |= {"first_row": step.first_row, "first_column": step.first_column, "result": step.output, "to_matrix": 1}
    return fields | {"output": CFeature(0, 0, 0, height, width, len(step.weight), 0)}


def _size(step: Conv) -> tuple[int, int]:
    return step.input.height, step.input.width


def _weight(step: Conv, memory: Memory, instructions: Instructions) -> Fields:
    if step.depthwise:
        return {"weight": depthwise_weight(step.weight)}
    if instructions not in {Instructions.AVX2, Instructions.AVX_VNNI}:
        return {"weight": dense_weight(step.weight)}
    place = memory.feature(step.input)
    weight, order = paired_weight(step.weight, place.row, place.pixel, split=instructions is Instructions.AVX2)
    return {"weight": weight, "order": order}


def _pool(step: MaxPool) -> Fields:
    return {"kind": Kind.POOL, "input": step.input, "output": step.output, "size": step.size}


def _upsample(step: Upsample) -> Fields:
    return {"kind": Kind.UPSAMPLE, "input": step.input, "output": step.output, "size": step.factor}


def _add(step: Add) -> Fields:
    left, right, output = step.left, step.right, step.output
    zeros = left.scale * left.zero + right.scale * right.zero
    return {
        "kind": Kind.ADD,
        "input": left,
        "other": right,
        "output": output,
        "multiplier": _padded(left.scale / output.scale),
        "other_multiplier": _padded(right.scale / output.scale),
        "offset": _padded(output.zero - zeros / output.scale),
    }


def _unary(step: Unary) -> Fields:
    return {"kind": Kind.UNARY, "left": step.input, "result": step.output, "choice": step.function}


def _arithmetic(step: Arithmetic) -> Fields:
    left_first, left_last = step.left_columns or (0, step.left.columns)
    right_first, right_last = step.right_columns or (0, step.right.columns)
    columns = max(left_last - left_first, right_last - right_first)
    return {
        "kind": Kind.ARITHMETIC,
        "left": step.left,
        "right": step.right,
        "result": step.output,
        "choice": step.operation,
        "left_column": left_first,
        "right_column": right_first,
        "first_column": step.first_column,
        "columns": columns,
        "wide": (left_last - left_first == columns) + 2 * (right_last - right_first == columns),
    }


def _concatenate(step: Concatenate) -> Fields:
    return {
        "kind": Kind.COPY,
        "left": step.input,
        "result": step.output,
        "first_row": step.first_row,
        "first_column": step.first_column,
    }


_FIELDS: dict[type[Step], Callable[[Any], Fields]] = {
    Pack: _pack,
    Conv: _conv,
    MaxPool: _pool,
    Upsample: _upsample,
    Add: _add,
    Unary: _unary,
    Arithmetic: _arithmetic,
    Concatenate: _concatenate,
}
