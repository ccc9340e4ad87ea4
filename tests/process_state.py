"""Which processes of this machine still run."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path


def alive(pid: int) -> bool:
    """Return whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def left(pids: Iterable[int], seconds: float = 0.0) -> list[int]:
    """Return those of some processes that still run, as soon as none does or after a while."""
    deadline = time.monotonic() + seconds
    while (found := [pid for pid in pids if alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found
