"""Sums over the ranks of one machine in shared memory, for messages so small that waking up costs more than sending."""

from __future__ import annotations

import mmap
import os
import platform
import time
import uuid
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from yolox.errors import YoloxError

CAPACITY = 1 << 15  # numbers in a message
_AWAKE_S = 1e-3  # a rank that waits keeps its core so long: a sleeper would often get it back milliseconds later
_NAP_S = 5e-5
_LIMIT_S = 1800.0  # what gloo allows as well
_LINE = 8  # counters of a cache line: ranks that count must not take each other's line away


def sum_over_ranks(sums: Tensor) -> None:
    """Add up, in place, what all ranks of the default process group hold; all of them get the same bits.

    Where the ranks do not share a machine, or its memory is not ordered as x86's is, this is an ``all_reduce``.

    Args:
        sums: float64 on the CPU, contiguous, of the same length on all ranks.

    Raises:
        YoloxError: When another rank does not come within half an hour.
    """
    tables = _tables()
    if tables is None or sums.numel() > CAPACITY:
        dist.all_reduce(sums)
    else:
        tables.add_up(sums.numpy())


class _SharedTables:
    """Two tables with a row for each rank, used in turn, and a counter for each rank.

    A rank writes its row, then counts; when all have counted as far, every row is there. Nobody writes to a table while
    it is read: to come to the next but one message, a rank must have seen everybody at the next one.
    """

    def __init__(self, memory: mmap.mmap, rank: int, world: int) -> None:
        self._rank = rank
        self._counters = np.frombuffer(memory, np.int64, world * _LINE)[::_LINE]
        self._tables = np.frombuffer(memory, np.float64, 2 * world * CAPACITY, 8 * world * _LINE)
        self._tables = self._tables.reshape(2, world, CAPACITY)
        self._count = 0

    @staticmethod
    def size(world: int) -> int:
        """Return the bytes that it takes."""
        return 8 * world * (_LINE + 2 * CAPACITY)

    def add_up(self, sums: NDArray[np.float64]) -> None:
        self._count += 1
        table = self._tables[self._count % 2, :, : sums.size]
        table[self._rank] = sums.reshape(-1)
        self._counters[self._rank] = self._count
        self._wait()
        sums.reshape(-1)[:] = table.sum(axis=0)

    def _wait(self) -> None:
        start = time.perf_counter()
        while self._counters.min() < self._count:
            waited = time.perf_counter() - start
            if waited > _LIMIT_S:
                late = np.flatnonzero(self._counters < self._count).tolist()
                raise YoloxError(f"ranks {late} did not send their sums for {_LIMIT_S / 60:.0f} minutes.")
            if waited > _AWAKE_S:
                time.sleep(_NAP_S)


_tables_of: WeakKeyDictionary[object, _SharedTables | None] = WeakKeyDictionary()  # by process group


def _tables() -> _SharedTables | None:
    group = dist.group.WORLD
    if group not in _tables_of:
        _tables_of[group] = _set_up()
    return _tables_of[group]


def _set_up() -> _SharedTables | None:
    """Let rank 0 make the memory and all others find it; all ranks decide alike."""
    rank, world = dist.get_rank(), dist.get_world_size()
    folder = Path("/dev/shm")
    own = None
    if rank == 0 and platform.machine() == "x86_64" and folder.is_dir():
        own = _create(folder, _SharedTables.size(world))
    offers: list[object] = [str(own) if own else None]
    dist.broadcast_object_list(offers)
    memory = _open(Path(str(offers[0])), _SharedTables.size(world)) if offers[0] else None
    found: list[object] = [None] * world
    dist.all_gather_object(found, memory is not None)
    if own is not None:
        own.unlink(missing_ok=True)
    return _SharedTables(memory, rank, world) if memory is not None and all(found) else None


def _create(folder: Path, size: int) -> Path | None:
    path = folder / f"yolox-sums-{uuid.uuid4().hex}"
    try:
        with path.open("xb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError:  # full, or not writable
        path.unlink(missing_ok=True)
        return None
    return path


def _open(path: Path, size: int) -> mmap.mmap | None:
    """Return the memory; None on another machine, where no file has this name."""
    try:
        with path.open("r+b") as file:
            return mmap.mmap(file.fileno(), size)
    except (OSError, ValueError):
        return None
