"""Smooth activations as straight lines in integers of 16 bits, which a vector computes 32 at a time."""

from __future__ import annotations

import ctypes

import numpy as np
from numpy.typing import NDArray

from yolox.inference.native.layout import CCurve
from yolox.inference.native.program import Activation, Feature

__all__ = ["curve"]

_PIECES = 64
_PLACES = 1024
_LIMIT = 32767
_MOST_SHIFT = 6


def curve(
    activation: Activation, output: Feature, multiplier: NDArray[np.float32], offset: NDArray[np.float32]
) -> tuple[CCurve, list[NDArray[np.generic]]] | None:
    """Return what computes ``activation(multiplier * sum + offset)`` as bytes, and the arrays it points at.

    The lines are at most a tenth of a byte's step away from the function where all channels have the same scale.

    Returns:
        ``None`` where the activation is no smooth one, or the scales of the channels are too different.
    """
    if activation not in (Activation.SILU, Activation.SIGMOID):
        return None
    scale = output.scale.astype(np.float64)
    low, high = _range(activation, float(scale.min()), float((scale * (255.0 - output.zero)).max()))
    width = (high - low) / _PIECES
    start, end = (_function(activation, low + width * (np.arange(_PIECES) + step)) for step in (0, 1))
    middle = _function(activation, low + width * (np.arange(_PIECES) + 0.5))
    start, rise = start + 0.5 * (middle - 0.5 * (start + end)), end - start
    unit = min(_LIMIT / (_PLACES / 32.0) / np.abs(rise).max(), 0.95 * _LIMIT / np.abs([start, start + rise]).max())
    factor = 2.0**15 / (unit * scale)
    shift = min(_MOST_SHIFT, int(np.floor(np.log2(_LIMIT / factor.max()))))
    if shift < 0:
        return None
    places = _PIECES * _PLACES / (high - low)
    arrays: list[NDArray[np.generic]] = [
        _padded(multiplier * places, np.float32),
        _padded((offset - 0.5 * (low + high)) * places, np.float32),
        _padded(np.rint(factor * 2**shift), np.int16),
        _padded(output.zero * 2.0**shift + (2**shift >> 1), np.int16),
    ]
    # an argument is signed: its upper half comes first
    halves = [np.roll(values, _PIECES // 2) for values in (start * unit, rise * unit * 32.0)]
    tables = [(ctypes.c_int16 * _PIECES)(*np.rint(half).astype(int).tolist()) for half in halves]
    return CCurve(*tables, shift, *(array.ctypes.data for array in arrays)), arrays


def _range(activation: Activation, step: float, top: float) -> tuple[float, float]:
    """Return the arguments between which the function changes by more than a fraction of a byte's step."""
    if activation == Activation.SIGMOID:
        end = float(np.log(4.0 / step))
        return -end, end
    candidates = np.arange(-16.0, -4.0, 0.25)
    flat = candidates[-_function(activation, candidates) < max(0.2 * step, 1e-6)]
    return float(flat.max(initial=-16.0)), max(top * 1.02, 0.5)


def _function(activation: Activation, x: NDArray[np.float64]) -> NDArray[np.float64]:
    sigmoid = 1.0 / (1.0 + np.exp(-x))
    return x * sigmoid if activation == Activation.SILU else sigmoid


def _padded(values: NDArray[np.generic], kind: type[np.generic]) -> NDArray[np.generic]:
    result = np.zeros(-(-len(values) // _PIECES) * _PIECES, kind)
    result[: len(values)] = values
    return result
