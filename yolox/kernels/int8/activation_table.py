"""SiLU, HardSwish and GELU in integers of 16 bits, which a vector computes 32 at a time.

Each is a product of the argument with a gate for which gate(x) + gate(-x) = 1. So it is the larger of the argument and
zero, less a dent that depends on the argument's size alone and vanishes for large ones. Straight lines describe the
dent, more precisely than they could describe the whole function; so do a few cubic polynomials, for machines that
cannot look up one of 64 lines in one instruction.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from yolox.kernels.int8.bindings import CActivationTable
from yolox.kernels.int8.int8_ir import Activation, Feature

_PIECES = 64
_CUBICS = 8
_LIMIT = 32767
_MOST_SHIFT = 6

_Array: TypeAlias = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class _Dent:
    """How far an activation lies below the larger of its argument and zero.

    Args:
        of: The dent for an argument of this size.
        reaches: Sizes beyond which it may be taken for what it is there.
        ends: Whether it ends with a bend at the only one of ``reaches``, which must be where a piece ends.
    """

    of: Callable[[_Array], _Array]
    reaches: tuple[float, ...]
    ends: bool = False


_DENTS = {
    Activation.SILU: _Dent(
        lambda size: np.asarray(size / (1.0 + np.exp(size)), np.float64), tuple(np.arange(5.0, 16.0, 0.25))
    ),
    Activation.HARD_SWISH: _Dent(lambda size: np.maximum(size * (3.0 - size), 0.0) / 6.0, (3.0,), ends=True),
    Activation.GELU: _Dent(
        lambda size: size * 0.5 * np.vectorize(math.erfc, [float])(size / math.sqrt(2.0)),
        tuple(np.arange(3.0, 6.0, 0.25)),
    ),
}


def activation_table(
    activation: Activation, output: Feature, multiplier: NDArray[np.float32], offset: NDArray[np.float32]
) -> tuple[CActivationTable, list[NDArray[np.generic]]] | None:
    """Return what computes ``activation(multiplier * sum + offset)`` as bytes, and the arrays it points at.

    Before rounding to a byte the result is at most 0.0015 away from the function where no byte stands for more than 20,
    and at most 0.004 where none stands for more than 80.

    Returns:
        ``None`` where the activation is no smooth one, or the scales of the channels are too different.
    """
    if activation not in _DENTS:
        return None
    dent = _DENTS[activation]
    scale = output.scale.astype(np.float64)
    top = 1.02 * float((scale * (255.0 - output.zero)).max())
    unit, bits = _unit(dent, top)
    if not unit:
        return None
    factor = 2.0**15 * unit / scale
    shift = min(_MOST_SHIFT, int(np.floor(np.log2(_LIMIT / factor.max()))))
    if shift < 0:
        return None
    arrays: list[NDArray[np.generic]] = [
        _padded(multiplier / unit, np.float32),
        _padded(offset / unit, np.float32),
        _padded(np.rint(factor * 2**shift), np.int16),
        _padded(output.zero * 2.0**shift + (2**shift >> 1), np.int16),
    ]
    width = 2.0**bits * unit
    edges = width * np.arange(_PIECES + 1)
    dents = dent.of(edges)
    rise = np.diff(dents) / width
    # the line lies as far above the middle of its piece as below the ends
    start = dents[:-1] - rise * edges[:-1] + 0.5 * (dent.of(edges[:-1] + 0.5 * width) - 0.5 * (dents[:-1] + dents[1:]))
    numbers = (start / unit, rise * 2.0**15, _cubics(dent, width * _PIECES) / unit)
    tables = [(ctypes.c_int16 * len(one))(*np.rint(one).astype(int).tolist()) for one in numbers]
    return CActivationTable(*tables, bits, shift, *(array.ctypes.data for array in arrays)), arrays


def _unit(dent: _Dent, top: float) -> tuple[float, int]:
    """Return what one of the 16-bit integers stands for, and the bits of an argument that are a place in its piece.

    The integers reach ``top``, the pieces reach as far as there is a dent to speak of. Fine integers, short pieces and
    a long reach exclude each other; of the ways that there are, the one with the smallest error is taken; zeros where
    there is none.
    """
    halvings = np.arange(6)
    spans = np.outer(dent.reaches, 2.0**halvings)
    units, bits = np.maximum(top, spans) / 2.0**15, np.broadcast_to(9 - halvings, spans.shape)
    width = units * 2.0**bits
    errors = width**2 / 32.0 + 0.5 * units + 0.5 * dent.of(width * _PIECES)
    if dent.ends:
        errors = np.where(spans < top, math.inf, errors)
    best = int(np.argmin(errors))
    return (float(units.flat[best]), int(bits.flat[best])) if math.isfinite(errors.flat[best]) else (0.0, 0)


def _cubics(dent: _Dent, reach: float) -> _Array:
    """Return the coefficients of polynomials of the place 0...1 in each piece up to ``reach``, the constants first.

    All but the constants are multiplied by eight, as they get three more bits.
    """
    nodes = 0.5 - 0.5 * np.cos(np.pi * (np.arange(4) + 0.5) / 4)
    values = dent.of(reach / _CUBICS * (np.arange(_CUBICS)[:, None] + nodes))
    coefficients = np.linalg.solve(np.vander(nodes, increasing=True), values.T)
    return np.asarray(coefficients * np.array([[1.0], [8.0], [8.0], [8.0]]), np.float64).ravel()


def _padded(values: NDArray[np.generic], kind: type[np.generic]) -> NDArray[np.generic]:
    result = np.zeros(-(-len(values) // _PIECES) * _PIECES, kind)
    result[: len(values)] = values
    return result
