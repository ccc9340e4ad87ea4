"""A limit on what a part of this program may allocate: it fails there, before the system has to end the process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import resource
except ImportError:  # Windows has no such limits
    resource = None  # type: ignore[assignment]

_KIB = 1024


@contextmanager
def limited_memory(more: int) -> Iterator[None]:
    """Have allocations of this process fail that take it more than ``more`` bytes beyond what it has now.

    They fail as where no memory is left: a `MemoryError`, or what a library makes of it. The limit holds for all
    threads. Where the system has no such limit, or does not tell what is in use, nothing happens.
    """
    used = _data_bytes()
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


def _data_bytes() -> int | None:
    """Return what counts for the limit: the private, writable memory of this process."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    lines = (line for line in status.splitlines() if line.startswith("VmData:"))
    return next((int(line.split()[1]) * _KIB for line in lines), None)
