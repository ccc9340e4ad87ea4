"""Turns the steps of a program into what the kernels read: addresses, packed weights, factors per channel."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from yolox.kernels.int8.bindings import CFeature, CStep, Instructions, Kind
from yolox.kernels.int8.int8_ir import Feature, Fields, Matrix, Program
from yolox.kernels.int8.memory import Memory

_VECTOR = 16


def lower(program: Program, memory: Memory, instructions: Instructions) -> tuple[ctypes.Array[CStep], list[Any]]:
    """Return the steps and the objects whose addresses they hold, which must live as long."""
    lowered: list[CStep] = []
    alive: list[Any] = []
    for index, step in enumerate(program.steps):
        for feature, border in memory.born(index):
            lowered.append(_step({**_border(feature, border), "output": feature}, memory, alive))
        lowered.append(_step(step.fields(memory, instructions), memory, alive))
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
            values[name] = value if isinstance(value, CFeature | float) else int(value)
    return CStep(**values)


def _border(feature: Feature, border: int) -> Fields:
    pattern = np.zeros(-(-feature.channels // _VECTOR) * _VECTOR, np.uint8)
    pattern[: feature.channels] = feature.zero
    return {"kind": Kind.BORDER, "padding": border, "weight": pattern}
