"""How much of the CPUs other processes used while something was timed."""

from __future__ import annotations

import os
import time
from pathlib import Path

from yolox.cpu.machine import read_machine

_USER, _NICE, _SYSTEM, _IRQ, _SOFTIRQ, _STEAL = 0, 1, 2, 5, 6, 7  # columns of /proc/stat, see proc(5)


class OtherLoad:
    """Measures, from its making on, how many of the CPUs that this process may use others use.

    Others are processes, and on a virtual machine the guests beside it.

    Args:
        root: Where ``proc`` lies.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._stat = root / "proc" / "stat"
        self._numbers = {cpu.number for cpu in read_machine().usable}
        self._start = self._now()

    def cores(self) -> float | None:
        """Return the mean number of cores that others have used so far; None where the system does not tell."""
        if self._start is None or (now := self._now()) is None:
            return None
        wall, busy, own = (after - before for after, before in zip(now, self._start, strict=True))
        return max(0.0, (busy - own) / wall) if wall > 0 else None

    def _now(self) -> tuple[float, float, float] | None:
        """Return the time, and the seconds that all and this process and its threads have computed."""
        try:
            lines = self._stat.read_text().splitlines()
            tick = os.sysconf("SC_CLK_TCK")
            rows = [line.split() for line in lines if line.startswith("cpu") and line[3:4].isdigit()]
            columns = [[int(value) for value in row[1:]] for row in rows if int(row[0][3:]) in self._numbers]
            busy = sum(row[i] for row in columns for i in (_USER, _NICE, _SYSTEM, _IRQ, _SOFTIRQ, _STEAL)) / tick
        except (OSError, ValueError, IndexError):
            return None
        return (time.monotonic(), busy, time.process_time()) if columns else None
