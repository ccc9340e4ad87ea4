"""The structures of ``steps.h`` and ``run.cpp`` for ctypes, field by field in the same order."""

from __future__ import annotations

import ctypes
from enum import IntEnum

_NUMBER = ctypes.c_int64
_ADDRESS = ctypes.c_void_p


class Kind(IntEnum):
    """The operation of a step."""

    BORDER = 0
    PACK = 1
    DENSE = 2
    DEPTHWISE = 3
    POOL = 4
    UPSAMPLE = 5
    ADD = 6
    UNARY = 7
    ARITHMETIC = 8
    COPY = 9
    AVERAGE = 10
    MULTIPLY = 11
    RESIZE = 12


class Place(IntEnum):
    """The memory in which a matrix lies."""

    ARENA = 0
    CONSTANT = 1
    OUTPUT = 2


class Instructions(IntEnum):
    """The instruction set that the kernels of a machine are compiled for."""

    PORTABLE = 0
    """Whatever the compiler finds: ten times slower."""
    AVX2 = 1
    """Adds two products of weights and bytes in 16 bits."""
    AVX_VNNI = 2
    """AVX2 with an instruction that adds four in 32 bits."""
    AVX512_VNNI = 3
    NEON = 4
    """ARM's, with its instruction for four products of bytes."""
    AMX = 5
    """AVX-512 VNNI, and Intel's matrix unit for dense convolutions."""


class CFeature(ctypes.Structure):
    """Bytes [height, width, channels] in the arena."""

    _fields_ = tuple((name, _NUMBER) for name in ("at", "row", "pixel", "height", "width", "channels", "room"))


class CMatrix(ctypes.Structure):
    """Floats [rows, columns]."""

    _fields_ = tuple((name, _NUMBER) for name in ("place", "at", "rows", "columns"))


class CActivationTable(ctypes.Structure):
    """A smooth activation as a table of straight lines and cubic polynomials."""

    _fields_ = (
        ("start", ctypes.c_int16 * 64),
        ("rise", ctypes.c_int16 * 64),
        ("cubic", ctypes.c_int16 * 32),
        ("bits", _NUMBER),
        ("shift", _NUMBER),
        *((name, _ADDRESS) for name in ("multiplier", "offset", "factor", "zero")),
    )


class CStep(ctypes.Structure):
    """One step."""

    _fields_ = (
        ("kind", _NUMBER),
        *((name, CFeature) for name in ("input", "other", "output")),
        *((name, CMatrix) for name in ("left", "right", "result")),
        *((name, _NUMBER) for name in ("size", "padding", "height", "width", "stride", "dilation", "above", "before")),
        ("alpha", ctypes.c_double),
        *((name, _NUMBER) for name in ("choice", "index", "linear", "tiles", "to_matrix")),
        *((name, _NUMBER) for name in ("first_row", "first_column", "left_column", "right_column", "columns", "wide")),
        ("joined", _NUMBER),
        *((name, _ADDRESS) for name in ("multiplier", "offset", "inverse", "zero", "other_multiplier")),
        *((name, _ADDRESS) for name in ("weight", "activation_table", "order")),
    )


class CBatch(ctypes.Structure):
    """One call."""

    _fields_ = (
        *((name, _NUMBER) for name in ("images", "inputs", "outputs")),
        *((name, _ADDRESS) for name in ("input", "input_bytes", "is_byte", "output", "output_floats")),
        *((name, _NUMBER) for name in ("streams", "team")),
        ("seconds", _ADDRESS),
    )
