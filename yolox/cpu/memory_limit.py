"""A limit on what a part of this program may allocate: it fails there, before the system has to end the process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from yolox.cpu.allocator import freed_memory_returned
from yolox.cpu.cgroups import kernel_bytes

try:
    import resource
except ImportError:  # Windows has no such limits
    resource = None  # type: ignore[assignment]

_limit = threading.RLock()  # the limit is one of the process: two threads would restore each other's


@contextmanager
def limited_memory(more: int) -> Iterator[None]:
    """Have allocations of this process fail that take it more than ``more`` bytes beyond what it has now.

    They fail as where no memory is left: a `MemoryError`, or what a library makes of it. The limit holds for all
    threads. Where the system has no such limit, or does not tell what is in use, nothing happens.
    """
    with _limit, freed_memory_returned():
        used = kernel_bytes(Path("/proc/self/status"), "VmData")  # private, writable memory: that is what counts
        if resource is None or used is None:
            yield
            return
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        wanted = used + more
        if soft != resource.RLIM_INFINITY and soft <= wanted:
            yield
            return
        resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
