"""Chooses the ranges of an int8 program of our own kernels from calibration data, so that the accuracy holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolox.cpu.allocator import release_memory
from yolox.errors import YoloxError
from yolox.inference.backends.base import Arrays, PrepareContext
from yolox.inference.convert.quantizers.mixed_precision import first_accurate
from yolox.kernels.int8.builder import convert, with_early_sigmoids
from yolox.kernels.int8.float_ir import Network
from yolox.kernels.int8.int8_ir import Program
from yolox.kernels.int8.ops.convolution import Convolution
from yolox.kernels.int8.quantize import observe

CALIBRATION_ROWS = 32
QUANTILES = (1.0, 0.95, 0.8)
"""Which of the extremes of the calibration images a channel's bytes span, one attempt each: all of them, or fewer."""


def quantize_network(
    network: Network,
    context: PrepareContext,
    build: Callable[[Program], Callable[..., Arrays]],
    *,
    in_pairs: bool = False,
    read: Callable[[Sequence[NDArray[Any]]], tuple[NDArray[Any], ...]] | None = None,
) -> Program:
    """Return the first program that keeps the accuracy, or the best one if none does.

    Args:
        network: The layers.
        context: Calibration data and the bound on accuracy; without a way to measure it, the first attempt is taken.
        build: Gives a runnable for a program.
        in_pairs: See ``quantize_weights``.
        read: Turns a batch of the calibration data into what ``network`` reads; ``None`` where that is the same.

    Raises:
        UsageError: Without calibration data.
        YoloxError: When there is no convolution, or layers follow each other in a way that no step computes.
    """
    network = with_early_sigmoids(network)
    if not any(isinstance(layer, Convolution) for layer in network.layers):
        raise YoloxError("no convolution arrived that could be computed in 8 bits. Use another method.")
    batches = [arrays if read is None else read(arrays) for arrays in _batches(context)]
    context.progress(f"calibrating on {sum(len(arrays[0]) for arrays in batches)} rows")
    observers = observe(network, _one_by_one(batches))
    shapes = network.shapes(batches[0])
    attempts = (
        (
            f"ranges of {quantile:.0%} of the images",
            partial(convert, network, observers, shapes, quantile, in_pairs=in_pairs),
        )
        for quantile in QUANTILES
    )
    return first_accurate(attempts, build, context)


def _one_by_one(batches: Sequence[tuple[NDArray[Any], ...]]) -> Iterator[tuple[NDArray[Any], ...]]:
    """Yield the batches, and give freed memory back after each.

    The C library finds no use for freed blocks of aligned memory, so that feature maps of 32 images would take 2 GB.
    """
    for arrays in batches:
        yield arrays
        release_memory()


def _batches(context: PrepareContext) -> Iterator[tuple[NDArray[Any], ...]]:
    """Yield rows of calibration data, one at a time, or as many as a fixed batch has.

    Raises:
        UsageError: When there are none.
    """
    rows = context.calibration_rows(CALIBRATION_ROWS)
    size = context.fixed_batch or 1
    for start in range(0, len(rows), size):
        chosen = [rows[index % len(rows)] for index in range(start, start + size)]
        yield tuple(np.concatenate(arrays) for arrays in zip(*chosen, strict=True))
