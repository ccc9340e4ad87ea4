"""Pieces of memory that a step uses: by their addresses while it is recorded, and planned where it is repeated."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

_LINE = 64


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

    def is_input(self, tensor: object) -> bool:
        """Return whether a tensor lies in an argument."""
        found = self.find(tensor.data_ptr()) if isinstance(tensor, Tensor) else None
        return found is not None and found[0].kind is Kind.INPUT

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
    """Where the planned buffers of a step lie: what is never in use at the same time shares its place.

    What a pass returns lies in a block of that pass, everything else in one block of the step.

    Args:
        buffers: All buffers.
        lengths: The number of entries of each phase.
        returned: What each phase returns.

    Attributes:
        size: Bytes of the step's block.
        returned: Bytes of each phase's block.
    """

    def __init__(
        self, buffers: Iterable[Buffer], lengths: Sequence[int], returned: Sequence[Collection[Buffer]]
    ) -> None:
        self._places: dict[Buffer, int] = {}
        self.returned = [0 for _ in lengths]
        begins = list(accumulate((length + 1 for length in lengths), initial=0))
        lives = []
        for buffer in buffers:
            if any(buffer in each for each in returned):
                self._places[buffer] = self.returned[buffer.phase]
                self.returned[buffer.phase] += _whole_lines(buffer.size)
            else:
                last = max(begins[phase] + entry for phase, entry in buffer.used.items())
                lives.append((begins[buffer.phase] + buffer.number, last, buffer))
        self.size = self._place(sorted(lives, key=lambda life: life[0]))

    def _place(self, lives: Iterable[tuple[int, int, Buffer]]) -> int:
        """Place each buffer as low as it fits when it is first needed; return the size of the block."""
        busy: list[tuple[int, int, int]] = []
        whole = 0
        for first, last, buffer in lives:
            busy = [place for place in busy if place[2] >= first]
            at, size = 0, _whole_lines(buffer.size)
            for start, end, _ in busy:
                if at + size <= start:
                    break
                at = end
            insort(busy, (at, at + size, last))
            self._places[buffer] = at
            whole = max(whole, at + size)
        return whole

    def of(self, buffer: Buffer) -> int:
        """Return where a buffer begins in its block."""
        return self._places[buffer]


def _whole_lines(size: int) -> int:
    return -(-size // _LINE) * _LINE
