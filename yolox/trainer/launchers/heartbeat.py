"""Signs of life of the ranks, and the decision that a run hangs.

A rank writes what it does next into a few bytes that it shares with its parent. Slow is not stuck: as long as any
process of the run computes or waits for the disk, the run is left alone. It hangs when nobody does anything for a
while, or when one rank stays in a single step far longer than ever before and the others can only wait for it.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from yolox.trainer.launchers.base import Phase

__all__ = ["Activity", "HangLimits", "HangWatch", "Heart", "is_busy", "read_activity", "read_heart"]

_PHASES: tuple[Phase, ...] = get_args(Phase)
_RECORD = struct.Struct("=qq")  # number of beats, index of the phase
_MIN_CPU_SECONDS = 0.03  # a second; less is housekeeping, not work


@dataclass(frozen=True)
class HangLimits:
    """Seconds after which a run that does nothing is taken to hang.

    Args:
        step: While every rank computes or fetches a batch.
        other: Between them: evaluation, files, callbacks, network.
        setup: Before the first batch.
        lone_step: Longest step of a busy rank that all others wait for, at least; or 20 times the longest so far.
    """

    step: float = 7.0
    other: float = 60.0
    setup: float = 300.0
    lone_step: float = 120.0


@dataclass(frozen=True)
class Activity:
    """What one rank did since the last look.

    Args:
        rank: Its number.
        phase: What it is doing.
        beats: Signs of life so far.
        busy: Whether it or one of its children computed or waited for the disk.
    """

    rank: int
    phase: Phase
    beats: int
    busy: bool


class Heart:
    """The rank's side: ``heart("step")`` costs less than a microsecond.

    Args:
        path: The file to share.
    """

    def __init__(self, path: Path) -> None:
        path.write_bytes(_RECORD.pack(0, 0))
        with path.open("r+b") as handle:
            self._memory = mmap.mmap(handle.fileno(), _RECORD.size)
        self._beats = 0

    def __call__(self, phase: Phase) -> None:
        """Tell what comes next."""
        self._beats += 1
        _RECORD.pack_into(self._memory, 0, self._beats, _PHASES.index(phase))


def read_heart(path: Path) -> tuple[int, Phase]:
    """Return the number of beats and the phase that a rank wrote last."""
    try:
        beats, phase = _RECORD.unpack(path.read_bytes())
    except (OSError, struct.error):
        return 0, "setup"
    return beats, _PHASES[phase] if phase < len(_PHASES) else "other"


@dataclass
class HangWatch:
    """Decides, look by look, whether a run hangs.

    Args:
        limits: How long is too long.
    """

    limits: HangLimits
    _idle_since: float | None = None
    _beats: dict[int, int] = field(default_factory=dict)
    _beat_at: dict[int, float] = field(default_factory=dict)
    _longest: float = 0.0

    def look(self, now: float, ranks: Sequence[Activity]) -> str | None:
        """Return why the run hangs, or None.

        Args:
            now: Seconds on any clock that only goes forward.
            ranks: Those that have not ended.
        """
        moved = [rank for rank in ranks if self._beats.get(rank.rank) != rank.beats]
        for rank in moved:
            if rank.rank in self._beat_at and rank.phase == "data":  # a step has just ended
                self._longest = max(self._longest, now - self._beat_at[rank.rank])
            self._beats[rank.rank], self._beat_at[rank.rank] = rank.beats, now
        busy = [rank for rank in ranks if rank.busy]
        if moved or busy or not ranks:
            self._idle_since = now
            return None if moved else self._lone_step(now, ranks, busy)
        idle = now - (self._idle_since if self._idle_since is not None else now)
        self._idle_since = now - idle
        limit = max(self._limit(rank.phase) for rank in ranks)
        return f"no process has done anything for {idle:.0f} s" if idle >= limit else None

    def _limit(self, phase: Phase) -> float:
        return {"step": self.limits.step, "data": self.limits.step, "other": self.limits.other}.get(
            phase, self.limits.setup
        )

    def _lone_step(self, now: float, ranks: Sequence[Activity], busy: Sequence[Activity]) -> str | None:
        if len(busy) != 1 or len(ranks) < 2 or busy[0].phase != "step":
            return None
        spent = now - self._beat_at.get(busy[0].rank, now)
        if spent < max(self.limits.lone_step, 20 * self._longest):
            return None
        return f"rank {busy[0].rank} has been computing one step for {spent:.0f} s and all others wait for it"


def read_activity(sessions: Sequence[int], proc: Path = Path("/proc")) -> dict[int, tuple[float, bool]]:
    """Return for each session its processor seconds so far, and whether a thread runs or waits for the disk.

    Args:
        sessions: Session numbers; a worker leads its own, and its children stay in it.
        proc: Where the process table lies.
    """
    ticks = os.sysconf("SC_CLK_TCK")
    wanted = dict.fromkeys(sessions, (0.0, False))
    for entry in proc.glob("[0-9]*"):
        fields = _stat(entry / "stat")
        session = int(fields[3]) if fields else -1
        if session not in wanted:
            continue
        seconds, runs = wanted[session]
        seconds += (int(fields[11]) + int(fields[12])) / ticks
        runs = runs or any((_stat(task) or ["S"])[0] in "RD" for task in (entry / "task").glob("*/stat"))
        wanted[session] = seconds, runs
    return wanted


def is_busy(before: tuple[float, bool] | None, after: tuple[float, bool], elapsed: float) -> bool:
    """Return whether a session worked between two readings ``elapsed`` seconds apart."""
    if before is None or after[1]:
        return True
    spent = after[0] - before[0]
    return spent < 0 or spent > _MIN_CPU_SECONDS * max(elapsed, 0.1)  # less than before: a child has ended


def _stat(path: Path) -> list[str]:
    """Return the fields of a ``stat`` file from the state on; empty when the process is gone."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except (OSError, ValueError):
        return []
