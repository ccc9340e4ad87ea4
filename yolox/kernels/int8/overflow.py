"""Weights whose products do not overflow on processors without VNNI.

Their 8-bit instruction (``vpmaddubsw``) adds the products of two neighbouring input channels in 16 bits, with
saturation: bytes up to 255 and two weights of 127 are half of the sum away from it. If the weights of each such pair
add up to 128 at most, sums are exact. As two large weights seldom are neighbours, that costs far less than the bit
which libraries take from all weights for the same purpose (``reduce_range``).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolox.cpu.machine import read_machine


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
