"""The 8-bit weights of a convolution: how large they may be, and the order in which the kernels read them.

On processors without VNNI products can overflow: their 8-bit instruction (``vpmaddubsw``) adds the products of two
neighbouring input channels in 16 bits, with saturation, and bytes up to 255 with two weights of 127 are half of the sum
away from it. If the weights of each such pair add up to 128 at most, sums are exact. As two large weights seldom are
neighbours, that costs far less than the bit which libraries take from all weights for the same purpose
(``reduce_range``).
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolox.cpu.machine import read_machine

MOST_OF_A_PAIR = 128
"""Size of the largest sum of two weights whose products with bytes, added, fit into 16 bits with sign."""

_VECTOR = 16
_LINE = 64
_TILE = 16  # rows of 64 bytes
_AVX2_ORDER = (0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15)


@cache
def sums_may_overflow() -> bool:
    """Whether this processor adds products of bytes in 16 bits."""
    machine = read_machine()
    return "avx2" in machine.isa and not machine.has_vnni


def weight_bounds(weight: NDArray[Any], *, pairs: bool) -> NDArray[np.float32]:
    """Return the absolute value that the largest int8 weight of each output channel shall stand for.

    Args:
        weight: [out, in, ...], real values.
        pairs: Keep the sums of two neighbouring inputs' products exact, too: where ``sums_may_overflow``.

    Returns:
        [out]: the largest absolute weight, or the largest sum of two neighbours of one sign if that is larger.
    """
    if not pairs:
        return np.asarray(np.abs(weight).reshape(len(weight), -1).max(1), np.float32)
    outs, ins = weight.shape[:2]
    even = np.concatenate([weight, np.zeros_like(weight[:, : ins % 2])], axis=1).reshape(outs, -(-ins // 2), 2, -1)
    positive, negative = np.maximum(even, 0.0).sum(2), np.maximum(-even, 0.0).sum(2)
    return np.asarray(np.maximum(positive, negative).reshape(outs, -1).max(1), np.float32)


def dense_weight(weight: NDArray[np.int8]) -> NDArray[np.int8]:
    """Return [height, width, in / 4, 64, 4] for 64 outputs, then for the next, then for 32 or 16; padded with zeros."""
    return _blocks_of_outputs(_padded(weight), 4)


def tile_weight(weight: NDArray[np.int8]) -> NDArray[np.int8]:
    """Return [height, width, in / 4, 32, 4] for each 32 outputs, then for 16; inputs are padded to whole vectors, too.

    A tile of weights is 16 outputs of some consecutive [4]; see ``tile_depth``.
    """
    return _blocks_of_outputs(_padded(weight, _VECTOR), 2)


def tile_depth(run: int) -> int:
    """Return how many fours of bytes a tile holds of a run of them, so that all tiles of the run are equal.

    Args:
        run: Bytes that follow each other in memory in the window of a convolution, a multiple of 16.

    Returns:
        At most 16; 0 where tiles would stay more than half empty.
    """
    fours = run // 4
    count = next(count for count in range(-(-fours // _TILE), fours + 1) if fours % count == 0)
    return fours // count if 2 * (fours // count) >= _TILE else 0


def _blocks_of_outputs(padded: NDArray[np.int8], most: int) -> NDArray[np.int8]:
    """Return [height, width, in / 4, 16 vectors, 4] for blocks of ``most`` vectors of outputs, or half as many."""
    outs, ins, height, width = padded.shape
    blocks, first = [], 0
    while first < outs:
        vectors = next(count for count in (4, 2, 1) if count <= min(most, (outs - first) // _VECTOR))
        last = first + vectors * _VECTOR
        split = padded[first:last].reshape(last - first, ins // 4, 4, height, width)
        blocks.append(split.transpose(3, 4, 1, 0, 2).ravel())
        first = last
    return _aligned(np.concatenate(blocks))


def paired_weight(
    weight: NDArray[np.int8], row: int, pixel: int, *, split: bool
) -> tuple[NDArray[np.int8], NDArray[np.int32]]:
    """Return what AVX2 multiplies, [16, 4] for each four bytes of 16 outputs' window, and where those bytes lie.

    Its instruction adds two neighbouring products in 16 bits. Where that might overflow, half of both weights goes into
    one more product with the same four bytes.

    Args:
        weight: [out, in, height, width].
        row: Bytes from a row of the input to the next.
        pixel: Bytes from a pixel of the input to the next.
        split: Whether the instruction has this limit.

    Returns:
        The weights; and for each 16 outputs the index of their first four bytes, then the number of all of them, then
        the distance of each from the window's beginning.
    """
    padded = _padded(weight)
    outs, ins, height, width = padded.shape
    blocks = padded.reshape(outs // _VECTOR, _VECTOR, ins // 4, 4, height, width)[:, list(_AVX2_ORDER)]
    pairs = blocks.transpose(0, 4, 5, 2, 1, 3).reshape(outs // _VECTOR, -1, _VECTOR, 2, 2).astype(np.int16)
    too_large = np.abs(pairs.sum(4, keepdims=True)) > MOST_OF_A_PAIR
    rest = np.where(too_large & split, pairs // 2, 0)
    y, x, four = np.meshgrid(np.arange(height), np.arange(width), np.arange(ins // 4), indexing="ij")
    distance = (y * row + x * pixel + 4 * four).ravel()
    weights, distances, first = [], [], [0]
    for whole, half in zip(pairs, rest, strict=True):
        again = half.any((1, 2, 3))
        weights += [(whole - half).ravel(), half[again].ravel()]
        distances += [distance, distance[again]]
        first.append(first[-1] + len(distance) + int(again.sum()))
    return _aligned(np.concatenate(weights).astype(np.int8)), np.concatenate([first, *distances]).astype(np.int32)


def depthwise_weight(weight: NDArray[np.int8]) -> NDArray[np.int8]:
    """Return [height, width, channels], padded with zeros, and readable for a line beyond."""
    channels, _, height, width = weight.shape
    shape = (height, width, -(-channels // _VECTOR) * _VECTOR)
    memory = np.zeros(math.prod(shape) + _LINE, np.int8)
    padded = memory[: math.prod(shape)].reshape(shape)
    padded[:, :, :channels] = weight[:, 0].transpose(1, 2, 0)
    return padded


def _padded(weight: NDArray[np.int8], inputs: int = 4) -> NDArray[np.int8]:
    """Return weights with zeros up to whole vectors of outputs and a multiple of some inputs."""
    outs, ins, height, width = weight.shape
    padded = np.zeros((-(-outs // _VECTOR) * _VECTOR, -(-ins // inputs) * inputs, height, width), np.int8)
    padded[:outs, :ins] = weight
    return padded


def _aligned(packed: NDArray[np.int8]) -> NDArray[np.int8]:
    """Return a copy that begins a cache line: vectors are read in half the time where they do not cross lines."""
    memory = np.empty(packed.size + _LINE, np.int8)
    first = -memory.ctypes.data % _LINE
    memory[first : first + packed.size] = packed
    return memory[first : first + packed.size]
