"""From a network with float weights to a program: its ranges from real data, chosen so that the accuracy holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolox.errors import UsageError, YoloxError
from yolox.inference.backends.base import Arrays, PrepareContext
from yolox.inference.native.assembly import assemble
from yolox.inference.native.layers import Convolution, Layer, Map, Network, Rows, Stack
from yolox.inference.native.program import Activation, Function, Program
from yolox.inference.native.quantize import Extremes, collect, find_codes, round_weights

__all__ = ["quantize_network", "with_early_sigmoids"]

CALIBRATION_ROWS = 32
QUANTILES = (1.0, 0.95, 0.8)
"""Which of the extremes of the calibration images a channel's bytes span, one attempt each: all of them, or fewer."""


def quantize_network(
    network: Network,
    context: PrepareContext,
    build: Callable[[Program], Callable[..., Arrays]],
    *,
    in_pairs: bool = False,
) -> Program:
    """Return the first program that keeps the accuracy, or the best one if none does.

    Args:
        network: The layers.
        context: Calibration data and the bound on accuracy; without a way to measure it, the first attempt is taken.
        build: Gives a runnable for a program.
        in_pairs: See ``round_weights``.

    Raises:
        UsageError: Without calibration data.
        YoloxError: When there is no convolution, or layers follow each other in a way that no step computes.
    """
    network = with_early_sigmoids(network)
    if not any(isinstance(layer, Convolution) for layer in network.layers):
        raise YoloxError("no convolution arrived that could be computed in 8 bits. Use another method.")
    batches = list(_batches(context))
    context.progress(f"calibrating on {sum(len(arrays[0]) for arrays in batches)} rows")
    extremes = collect(network, batches)
    shapes = network.shapes(batches[0])
    best: Program | None = None
    best_accuracy = -float("inf")
    for quantile in QUANTILES:
        start = time.monotonic()
        program = _program(network, extremes, shapes, quantile, in_pairs=in_pairs)
        if context.accuracy is None or context.original_accuracy is None:
            return program
        accuracy = context.accuracy(build(program))
        drop = context.original_accuracy - accuracy
        context.progress(f"ranges of {quantile:.0%} of the images: accuracy {accuracy:.4f}, drop {drop:.4f}")
        if best is None or accuracy > best_accuracy:
            best, best_accuracy = program, accuracy
        if drop <= context.max_drop:
            break
        if time.monotonic() + 1.5 * (time.monotonic() - start) > context.deadline_s:
            context.progress("no time left to try other ranges")
            break
    assert best is not None  # there is at least one attempt
    return best


def _batches(context: PrepareContext) -> Iterator[tuple[NDArray[Any], ...]]:
    """Yield rows of calibration data, one at a time, or as many as a fixed batch has.

    Raises:
        UsageError: When there are none.
    """
    rows = list(context.calibration_samples(CALIBRATION_ROWS))
    if not rows:
        raise UsageError("int8 needs real data to calibrate on, and none arrived. Give a loader as training_data.")
    size = 1 if context.dynamic_batch else len(context.sample[0])
    for start in range(0, len(rows), size):
        chosen = [rows[index % len(rows)] for index in range(start, start + size)]
        yield tuple(np.concatenate(arrays) for arrays in zip(*chosen, strict=True))


def _program(
    network: Network,
    extremes: dict[str, Extremes],
    shapes: dict[str, tuple[int, ...]],
    quantile: float,
    *,
    in_pairs: bool,
) -> Program:
    codes = find_codes(network, extremes, quantile)
    numbers = {
        layer.output: round_weights(layer, codes[layer.inputs[0]], extremes[layer.inputs[0]], in_pairs=in_pairs)
        for layer in network.layers
        if isinstance(layer, Convolution)
    }
    return assemble(network, codes, numbers, shapes)


def with_early_sigmoids(network: Network) -> Network:
    """Return the network with the sigmoid of a matrix moved into the convolutions that write it, where they all can."""
    writers = {layer.output: layer for layer in network.layers}
    readers = network.readers()

    def sources(name: str) -> list[Convolution] | None:
        """Return the convolutions that all numbers of a value come from, or ``None`` if others need these numbers."""
        layer = writers.get(name)
        if layer is None or readers[name] != 1:
            return None
        if isinstance(layer, Convolution):
            return [layer] if layer.activation is Activation.NONE else None
        if not isinstance(layer, Rows | Stack):
            return None
        found = [sources(part) for part in layer.inputs]
        return None if None in found else [source for part in found for source in part or ()]

    changed: dict[str, Layer] = {}
    renamed: dict[str, str] = {}
    for layer in network.layers:
        if isinstance(layer, Map) and layer.function is Function.SIGMOID:
            convolutions = sources(layer.inputs[0])
            if convolutions is not None:
                changed |= {one.output: replace(one, activation=Activation.SIGMOID) for one in convolutions}
                renamed[layer.inputs[0]] = layer.output
    kept = [changed.get(layer.output, layer) for layer in network.layers if layer.output not in set(renamed.values())]
    layers = tuple(replace(layer, output=renamed.get(layer.output, layer.output)) for layer in kept)
    return replace(network, layers=layers)
