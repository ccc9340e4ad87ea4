"""Mixed-precision search: one int8 attempt after the other, each with less int8, until the accuracy holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from yolox.inference.backends.base import Arrays, PrepareContext

Quantized = TypeVar("Quantized")

FLOAT_SHARES = (0.05, 0.16, 0.25, 0.4)
"""Shares of the multiply-accumulates that are left in float, one attempt each. The worst layers are small ones as a
rule: the first five percent buy most of the accuracy and cost no measurable time."""

LEAST_INT8_SHARE = 0.6
"""A method that computes less than this in int8 should not be called int8."""


@dataclass(frozen=True)
class Layer:
    """A convolution or product that can be int8 or float.

    Args:
        name: The name by which its quantizer leaves it out.
        macs: Its multiply-accumulates.
        damage: Measured: how much of its signal int8 turns into noise (``ranges.relative_noise``).
    """

    name: str
    macs: int
    damage: float


def float_layer_sets(layers: Sequence[Layer], already_float: int = 0) -> list[frozenset[str]]:
    """Return the sets of layers to leave in float, one for each share of ``FLOAT_SHARES`` that adds something.

    Args:
        layers: The layers that can be int8.
        already_float: Multiply-accumulates of the layers that cannot.
    """
    total = sum(layer.macs for layer in layers) + already_float
    most_float = (1 - LEAST_INT8_SHARE) * total
    found: list[frozenset[str]] = []
    for share in FLOAT_SHARES:
        budget = min(share * total, most_float - already_float)
        chosen: set[str] = set()
        for layer in sorted(layers, key=lambda layer: -layer.damage):
            if layer.macs <= budget:
                budget -= layer.macs
                chosen.add(layer.name)
        if not found or chosen != found[-1]:
            found.append(frozenset(chosen))
    return found


def search_mixed_precision(
    quantize: Callable[[frozenset[str]], Quantized],
    layers: Sequence[Layer],
    already_float: int,
    build: Callable[[Quantized], Callable[..., Arrays]],
    context: PrepareContext,
) -> Quantized:
    """Return the first quantized model that keeps the accuracy, leaving more and more layers in float.

    Args:
        quantize: Quantizes all but the named layers.
        layers: The layers that can be int8.
        already_float: Multiply-accumulates of the layers that cannot.
        build: Gives a runnable for a quantized model.
        context: Has the measure of accuracy, its bound and the deadline.
    """
    attempts = (
        (f"{len(excluded)} sensitive layers in float", partial(quantize, excluded))
        for excluded in float_layer_sets(layers, already_float)
    )
    return first_accurate(attempts, build, context)


def first_accurate(
    attempts: Iterable[tuple[str, Callable[[], Quantized]]],
    build: Callable[[Quantized], Callable[..., Arrays]],
    context: PrepareContext,
) -> Quantized:
    """Return the first quantized model that loses at most ``context.max_drop``, or the most accurate if none does.

    Without a way to measure accuracy the first attempt is taken.

    Args:
        attempts: What is special about each, and the function that makes it; at least one.
        build: Gives a runnable for a quantized model.
        context: Has the measure of accuracy, its bound and the deadline.
    """
    best: Quantized | None = None
    best_accuracy = -float("inf")
    for description, quantize in attempts:
        start = time.monotonic()
        model = quantize()
        if context.accuracy is None or context.original_accuracy is None:
            return model
        accuracy = context.accuracy(build(model))
        drop = context.original_accuracy - accuracy
        context.progress(f"{description}: accuracy {accuracy:.4f}, drop {drop:.4f}")
        if best is None or accuracy > best_accuracy:
            best, best_accuracy = model, accuracy
        if drop <= context.max_drop:
            break
        if time.monotonic() + 1.5 * (time.monotonic() - start) > context.deadline_s:
            context.progress("no time left for another attempt")
            break
    assert best is not None, "a search has at least one attempt"
    return best
