"""Pieces of memory that a step uses: by their addresses while it is recorded, and planned where it is repeated."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

import torch
from torch import Tensor

_LINE = 64

KEPT, SCRATCH, RETURNED = range(3)
"""Blocks of memory: what is kept for the backward pass, what dies within a pass, and what a pass returns."""


class Kind(Enum):
    """Where memory comes from."""

    CONSTANT = auto()  # a parameter or buffer of the module
    INPUT = auto()  # an argument: of the forward pass, or a gradient given to the backward pass
    PLANNED = auto()  # asked for without values, by a kernel or for a result that can be written anywhere
    RESULT = auto()  # made by an operator of PyTorch


@dataclass(eq=False)
class Buffer:
    """A piece of memory that lives through a part of a step.

    Args:
        kind: Where it comes from.
        size: Bytes.
        phase: Number of the phase that made it.
        number: Of the argument; of others the entry that made it or comes next.

    Attributes:
        used: For each phase that reads or writes it, the number of the last entry that does.
        tensor: A constant itself.
    """

    kind: Kind
    size: int
    phase: int
    number: int
    used: dict[int, int] = field(default_factory=dict)
    tensor: Tensor | None = None


class Ref(NamedTuple):
    """A tensor as it lies in a buffer: ``offset`` in bytes from the buffer's beginning."""

    buffer: Buffer
    offset: int
    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]


class Pointer(NamedTuple):
    """An address among the arguments of a kernel: at byte ``place`` of them, ``offset`` bytes into a buffer."""

    place: int
    buffer: Buffer
    offset: int


class AddressMap:
    """Buffers by their addresses."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._buffers: dict[int, Buffer] = {}

    def _at(self, address: int) -> int | None:
        index = bisect_right(self._starts, address) - 1
        if index < 0:
            return None
        start = self._starts[index]
        return start if address < start + self._buffers[start].size else None

    def find(self, address: int) -> tuple[Buffer, int] | None:
        """Return the buffer at an address, and the distance from its beginning."""
        start = self._at(address)
        return None if start is None else (self._buffers[start], address - start)

    def overlaps(self, start: int, size: int) -> list[int]:
        """Return the beginnings of the buffers that have bytes in common with these."""
        last = bisect_right(self._starts, start + size - 1)
        first = bisect_right(self._starts, start)
        before = self._at(start)
        return ([] if before is None else [before]) + [s for s in self._starts[first:last] if s != before]

    def add(self, start: int, buffer: Buffer) -> None:
        """Note a buffer; what was there is gone."""
        for old in self.overlaps(start, buffer.size):
            self._starts.remove(old)
            del self._buffers[old]
        insort(self._starts, start)
        self._buffers[start] = buffer


class Placement:
    """Where the buffers of a phase lie, planned so that those that are never in use together share their place.

    Args:
        phase: Number of the phase that makes them.
    """

    def __init__(self, phase: int) -> None:
        self.phase = phase
        self.sizes = [0, 0, 0]
        self.of: dict[Buffer, tuple[int, int]] = {}

    def plan(self, buffers: Sequence[Buffer], returned: set[Buffer]) -> None:
        """Give each buffer that this phase makes its block and the offset in it."""
        busy: list[tuple[int, int, Buffer]] = []
        for buffer in buffers:
            size = -(-buffer.size // _LINE) * _LINE
            block = RETURNED if buffer in returned else KEPT if max(buffer.used) > self.phase else SCRATCH
            offset = self.sizes[block]
            if block == SCRATCH:
                busy = sorted(one for one in busy if one[2].used[self.phase] >= buffer.number)
                offset = _lowest(size, busy)
                busy.append((offset, offset + size, buffer))
            self.of[buffer] = block, offset
            self.sizes[block] = max(self.sizes[block], offset + size)


def _lowest(size: int, busy: Sequence[tuple[int, int, Buffer]]) -> int:
    at = 0
    for first, last, _ in busy:
        if at + size <= first:
            break
        at = max(at, last)
    return at
