"""The search for the layers that int8 hurts: leave more of them in float, rung by rung, until the accuracy holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from yolox.inference.backends.base import Arrays, PrepareContext

__all__ = ["LEAST_INT8_SHARE", "Layer", "climb", "relative_noise", "rungs"]

Quantized = TypeVar("Quantized")

RUNGS = (0.0, 0.05, 0.16, 0.25, 0.4)
"""Shares of the multiply-accumulates that are left in float, one attempt each."""

LEAST_INT8_SHARE = 0.6
"""A method that computes less than this in int8 should not be called int8."""


@dataclass(frozen=True)
class Layer:
    """A convolution or product that can be int8 or float.

    Args:
        name: The name by which its quantizer leaves it out.
        macs: Its multiply-accumulates.
        damage: Measured: how much of its signal int8 turns into noise (see ``relative_noise``).
    """

    name: str
    macs: int
    damage: float


def relative_noise(values: np.ndarray[Any, Any], low: float, high: float) -> float:
    """Return the noise of 8-bit rounding over the variance of the signal, averaged over the channels.

    A few wide channels set the step of a whole tensor; what it does to the narrow ones decides about accuracy.

    Args:
        values: Activations, channels on axis 1 (on the last axis if there are fewer than four axes).
        low: Smallest value that int8 represents.
        high: Largest value that int8 represents.
    """
    channel_axis = 1 if values.ndim >= 4 else values.ndim - 1
    others = tuple(axis for axis in range(values.ndim) if axis != channel_axis)
    noise = ((high - low) / 255) ** 2 / 12
    variance = values.var(axis=others)
    return float(np.mean(np.minimum(1.0, noise / np.maximum(variance, 1e-12))))


def rungs(layers: Sequence[Layer], already_float: int = 0) -> list[frozenset[str]]:
    """Return the sets of layers to leave in float, each larger than the one before; the first is empty.

    Args:
        layers: The layers that can be int8.
        already_float: Multiply-accumulates of the layers that cannot.
    """
    total = sum(layer.macs for layer in layers) + already_float
    most_float = (1 - LEAST_INT8_SHARE) * total
    found: list[frozenset[str]] = []
    for share in RUNGS:
        budget = min(share * total, most_float - already_float)
        chosen: set[str] = set()
        for layer in sorted(layers, key=lambda layer: -layer.damage):
            if layer.macs <= budget:
                budget -= layer.macs
                chosen.add(layer.name)
        if not found or chosen != found[-1]:
            found.append(frozenset(chosen))
    return found


def climb(
    quantize: Callable[[frozenset[str]], Quantized],
    measure_layers: Callable[[], tuple[Sequence[Layer], int]],
    build: Callable[[Quantized], Callable[..., Arrays]],
    context: PrepareContext,
) -> Quantized:
    """Return the first quantized model that keeps the accuracy, or the best one if none does.

    Without a way to measure accuracy the first rung is taken.

    Args:
        quantize: Quantizes all but the named layers.
        measure_layers: Gives the layers with their damage, and what cannot be int8; called when the first rung fails.
        build: Gives a runnable for a quantized model.
        context: Has the measure of accuracy, its bound and the deadline.
    """
    start = time.monotonic()
    model = quantize(frozenset())
    if context.accuracy is None or context.original_accuracy is None:
        return model
    best, best_accuracy = model, _judge(build(model), 0, context)
    attempt_s = time.monotonic() - start
    if best_accuracy >= context.original_accuracy - context.max_drop:
        return best
    layers, already_float = measure_layers()
    for excluded in rungs(layers, already_float)[1:]:
        if time.monotonic() + attempt_s > context.deadline_s:
            context.progress("no time left to raise more layers")
            break
        model = quantize(excluded)
        accuracy = _judge(build(model), len(excluded), context)
        if accuracy > best_accuracy:
            best, best_accuracy = model, accuracy
        if accuracy >= context.original_accuracy - context.max_drop:
            break
    return best


def _judge(predict: Callable[..., Arrays], num_float: int, context: PrepareContext) -> float:
    assert context.accuracy is not None and context.original_accuracy is not None
    accuracy = context.accuracy(predict)
    drop = context.original_accuracy - accuracy
    context.progress(f"{num_float} more layers in float: accuracy {accuracy:.4f}, drop {drop:.4f}")
    return accuracy
