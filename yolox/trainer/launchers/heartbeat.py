"""Signs of life of the ranks, and the decision that a run hangs.

A rank writes what it does next into a few bytes that it shares with its parent. Slow is not stuck: as long as any
process of the run computes or waits for the disk, the run is left alone, and a rank that waits for its next batch, for
a file or for an evaluation may wait for ever (a file server that is slow leaves no trace in the process table). A run
hangs when all its ranks are in a step and nobody does anything for minutes, or when one rank stays in a single step far
longer than ever before and the others can only wait for it.
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

_PHASES: tuple[Phase, ...] = get_args(Phase)
_RECORD = struct.Struct("=qq")  # number of beats, index of the phase
_MIN_COMPUTED, _MIN_RUNNABLE = 0.03, 0.4  # seconds a second; less is housekeeping, not work


@dataclass(frozen=True)
class HangLimits:
    """Seconds after which a run that does nothing is taken to hang.

    Args:
        step: While every rank computes a batch.
        lone_step: Longest step of a busy rank that all others wait for, at least; or 20 times the longest so far.
    """

    step: float = 180.0
    lone_step: float = 120.0


@dataclass(frozen=True)
class RankActivity:
    """The activity of one rank since it was last read.

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


class Heartbeat:
    """The rank's side: ``heartbeat("step")`` costs less than a microsecond.

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


def read_heartbeat(path: Path) -> tuple[int, Phase]:
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

    def look(self, now: float, ranks: Sequence[RankActivity]) -> str | None:
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
        if moved or busy or any(rank.phase != "step" for rank in ranks) or not ranks:
            self._idle_since = now
            return None if moved else self._lone_step(now, ranks, busy)
        idle = now - (self._idle_since if self._idle_since is not None else now)
        self._idle_since = now - idle
        return f"no process has done anything for {idle:.0f} s" if idle >= self.limits.step else None

    def _lone_step(self, now: float, ranks: Sequence[RankActivity], busy: Sequence[RankActivity]) -> str | None:
        if len(busy) != 1 or len(ranks) < 2 or busy[0].phase != "step":
            return None
        spent = now - self._beat_at.get(busy[0].rank, now)
        if spent < max(self.limits.lone_step, 20 * self._longest):
            return None
        return f"rank {busy[0].rank} has been computing one step for {spent:.0f} s and all others wait for it"


@dataclass(frozen=True)
class CpuActivity:
    """The activity of the threads of one session so far.

    Args:
        computed: Seconds on a processor.
        queued: Seconds in the queue for one, on a crowded machine.
        disk: Whether one of them waits for the disk right now.
    """

    computed: float = 0.0
    queued: float = 0.0
    disk: bool = False


def read_cpu_activity(sessions: Sequence[int], proc: Path = Path("/proc")) -> dict[int, CpuActivity]:
    """Return what the threads of each session have done so far.

    Args:
        sessions: Session numbers; a worker leads its own, and its children stay in it.
        proc: Where the process table lies.
    """
    cpu_activities = dict.fromkeys(sessions, CpuActivity())
    for entry in proc.glob("[0-9]*"):
        fields = _stat(entry / "stat")
        session = int(fields[3]) if fields else -1
        if session not in cpu_activities:
            continue
        cpu_activity = cpu_activities[session]
        computed, queued, disk = cpu_activity.computed, cpu_activity.queued, cpu_activity.disk
        for task in (entry / "task").glob("[0-9]*"):
            fields = _stat(task / "stat") or ["S"]
            seconds = _schedule(task / "schedstat") or _ticks(fields)
            computed, queued, disk = computed + seconds[0], queued + seconds[1], disk or fields[0] == "D"
        cpu_activities[session] = CpuActivity(computed, queued, disk)
    return cpu_activities


def is_busy(before: CpuActivity | None, after: CpuActivity, elapsed: float) -> bool:
    """Return whether a session worked between two readings ``elapsed`` seconds apart.

    A thread that works is on a processor or in the queue all the time; one that waits wakes up now and then.
    """
    if before is None or after.disk:
        return True
    computed, queued = after.computed - before.computed, after.queued - before.queued
    ended = computed < 0  # a child's seconds are gone with it
    return ended or computed > _MIN_COMPUTED * elapsed or computed + queued > _MIN_RUNNABLE * elapsed


def _schedule(path: Path) -> tuple[float, float] | None:
    """Return seconds on a processor and in the queue, where the kernel counts both."""
    try:
        computed, queued = path.read_text(encoding="ascii").split()[:2]
    except (OSError, ValueError):
        return None
    return int(computed) / 1e9, int(queued) / 1e9


def _ticks(fields: Sequence[str]) -> tuple[float, float]:
    if len(fields) < 13:
        return 0.0, 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), 0.0


def _stat(path: Path) -> list[str]:
    """Return the fields of a ``stat`` file from the state on; empty when the process is gone."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except (OSError, ValueError):
        return []
