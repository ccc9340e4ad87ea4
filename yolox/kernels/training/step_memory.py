"""The blocks of memory that recorded steps run in, kept from step to step.

They do not come from malloc: a block of a gigabyte hardly ever fits where small tensors were allocated in between.
"""

from __future__ import annotations

import mmap
import threading
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor

from yolox.cpu.allocator import freed_memory_returned

_PAGE = 1 << 21  # a huge page
_LARGE = 1 << 26  # what malloc serves as well is not worth a mapping of its own


class _Blocks:
    def __init__(self) -> None:
        self._free: list[Tensor] = []
        self._largest = 0
        self._lock = threading.Lock()

    def take(self, size: int) -> Tensor:
        """Return at least so many bytes, which nobody else uses until they are given back or deleted."""
        with self._lock:
            fitting = [block for block in self._free if len(block) >= size]
            if fitting:
                block = min(fitting, key=len)
                self._free = [other for other in self._free if other is not block]
                return block
            self._free.clear()
            known, self._largest = self._largest, max(self._largest, size)
        if size < _LARGE:
            return torch.empty(size, dtype=torch.uint8)
        if size > known:  # a step of that size has just been taken in malloc's memory
            with freed_memory_returned():
                return _mapped(size)
        return _mapped(size)

    def give(self, block: Tensor) -> None:
        """Keep a block for the next step."""
        with self._lock:
            self._free.append(block)

    def release(self) -> None:
        """Give large blocks that are not in use back to the system."""
        with self._lock:
            self._free = [block for block in self._free if len(block) < _LARGE]


def _mapped(size: int) -> Tensor:
    try:
        memory = mmap.mmap(-1, -(-size // _PAGE) * _PAGE + _PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"{size} bytes for a training step") from error
    with suppress(OSError):  # a system without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(memory, np.uint8)
    first = -whole.ctypes.data % _PAGE
    return torch.from_numpy(whole[first : first + -(-size // _PAGE) * _PAGE])


BLOCKS = _Blocks()
"""Those of this process."""
