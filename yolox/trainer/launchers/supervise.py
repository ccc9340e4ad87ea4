"""Watch the processes of one run until all have ended, and let none of them outlive it."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

from yolox.errors import YoloxError
from yolox.trainer.launchers.base import Failure, RankError, first_cause
from yolox.trainer.launchers.heartbeat import (
    Activity,
    Effort,
    HangLimits,
    HangWatch,
    is_busy,
    read_effort,
    read_heart,
)
from yolox.trainer.launchers.worker import Desk

__all__ = ["Member", "supervise"]

_POLL_SECONDS = 0.1
_LOOK_SECONDS = 1.0
_PAUSE_SECONDS = 5.0
_SETTLE_SECONDS = 0.5  # after the first failure, for the failures that came before it but show later
_EXIT_SECONDS = 10.0  # from the result to the end of the process
_TAIL_LINES = 20
_WAITING_FRAMES = ("torch/distributed/", "_engine_run_backward", "lightning_fabric/utilities/distributed")
_log = logging.getLogger(__name__)


class Member(Protocol):
    """A started process, whoever started it."""

    @property
    def pid(self) -> int:
        """Its process id; it leads a process group and a session of its own."""

    def poll(self) -> int | None:
        """Return its exit code, negative for a signal, or None while it runs."""


@dataclass
class _Run:
    desk: Desk
    members: Sequence[Member]
    limits: HangLimits | None
    asked_to_stop: bool = False

    @property
    def world(self) -> int:
        return len(self.members)


def supervise(desk: Desk, members: Sequence[Member], limits: HangLimits | None) -> list[Any]:
    """Wait for all members; return their results by rank.

    SIGTERM is passed on to them once, so that they can end in order; a second one, Ctrl-C or any failure kills them.

    Raises:
        RankError: When a rank failed or the run hangs.
        YoloxError: When a rank raised it.
        SystemExit: When a rank ended itself so.
    """
    run = _Run(desk, members, limits)
    try:
        with _passing_sigterm_on(run):
            _wait(run)
        return [pickle.loads(desk.result(rank).read_bytes()) for rank in range(run.world)]
    finally:
        kill_all(members)


def kill_all(members: Sequence[Member]) -> None:
    """Kill the members and their children, and wait until the members are gone."""
    for member in members:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(member.pid, signal.SIGKILL)
        if member.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(member.pid, signal.SIGKILL)
    deadline = time.monotonic() + _EXIT_SECONDS
    while any(member.poll() is None for member in members) and time.monotonic() < deadline:
        time.sleep(0.01)


def _wait(run: _Run) -> None:
    watch = _Watcher(run)
    finished: dict[int, float] = {}
    while True:
        failures = list(_failures(run))
        if failures:
            time.sleep(_SETTLE_SECONDS)
            _raise(run, first_cause(list(_failures(run))))
        now = time.monotonic()
        for rank in range(run.world):
            if run.desk.result(rank).exists():
                finished.setdefault(rank, now)
        ended = [run.members[rank].poll() is not None or now - at > _EXIT_SECONDS for rank, at in finished.items()]
        if len(ended) == run.world and all(ended):
            return
        watch.look(now, [rank for rank in range(run.world) if rank not in finished])
        time.sleep(_POLL_SECONDS)


class _Watcher:
    """Looks once a second whether the run hangs."""

    def __init__(self, run: _Run) -> None:
        self.run = run
        self.watch = HangWatch(run.limits) if run.limits is not None and Path("/proc/self/stat").exists() else None
        self._last: dict[int, Effort] = {}
        self._last_at = 0.0

    def look(self, now: float, ranks: Sequence[int]) -> None:
        elapsed = now - self._last_at
        if self.watch is None or elapsed < _LOOK_SECONDS:
            return
        readings = read_effort([self.run.members[rank].pid for rank in ranks])
        activities = []
        for rank in ranks:
            pid = self.run.members[rank].pid
            beats, phase = read_heart(self.run.desk.heart(rank))
            # a parent that was paused itself knows nothing of the time in between
            busy = elapsed > _PAUSE_SECONDS or is_busy(self._last.get(pid), readings[pid], elapsed)
            activities.append(Activity(rank, phase, beats, busy))
        self._last, self._last_at = readings, now
        reason = self.watch.look(now, activities)
        if reason is not None:
            _raise(self.run, _describe_hang(self.run, reason, activities))


def _failures(run: _Run) -> Iterator[Failure]:
    for rank, member in enumerate(run.members):
        code = member.poll()  # before the files: a process writes them while it lives
        path = run.desk.failure(rank)
        if path.exists():
            yield pickle.loads(path.read_bytes())
        elif code is not None and not run.desk.result(rank).exists():
            yield _describe_end(run, rank, code)


def _describe_end(run: _Run, rank: int, code: int) -> Failure:
    stacks, output = _tail(run.desk.stacks(rank), 200), _tail(run.desk.output(rank))
    text = "\n".join(part for part in (stacks, output) if part)
    if code >= 0:
        return Failure(rank, "exited", f"with exit code {code} before it had a result", text, time.time())
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    advice = ""
    if -code == signal.SIGKILL:
        advice = "; when nobody did that by hand, the kernel ran out of memory: take a smaller batch or fewer processes"
    if -code == signal.SIGBUS:
        advice = "; shared memory may be full: take fewer loader processes or a larger /dev/shm"
    return Failure(rank, "killed", f"by {name}{advice}", text, time.time())


def _describe_hang(run: _Run, reason: str, ranks: Sequence[Activity]) -> Failure:
    """Ask every rank for its stacks; the one that does not wait for the others is the one to blame."""
    for activity in ranks:
        with suppress(ProcessLookupError, AttributeError):
            os.kill(run.members[activity.rank].pid, signal.SIGUSR1)
    time.sleep(_SETTLE_SECONDS)
    stacks = {activity.rank: _tail(run.desk.stacks(activity.rank), 200) for activity in ranks}
    own = [rank for rank, text in stacks.items() if not any(mark in text for mark in _WAITING_FRAMES)]
    fewest = min(activity.beats for activity in ranks)
    behind = [activity.rank for activity in ranks if activity.beats == fewest]
    suspect = (own or behind)[0]
    phase = next(activity.phase for activity in ranks if activity.rank == suspect)
    return Failure(suspect, "hangs", f"{reason}; phase '{phase}'", stacks[suspect], time.time())


def _raise(run: _Run, failure: Failure) -> NoReturn:
    text = failure.traceback_text
    rank_error = RankError(failure.rank, run.world, failure.kind, failure.summary, text)
    if isinstance(failure.error, YoloxError):
        raise failure.error from rank_error
    if isinstance(failure.error, SystemExit):
        raise SystemExit(failure.error.code)
    raise rank_error from failure.error


def _tail(path: Path, lines: int = _TAIL_LINES) -> str:
    try:
        return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


@contextmanager
def _passing_sigterm_on(run: _Run) -> Iterator[None]:
    """Send SIGTERM on to the workers; only the main thread may ask for that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def pass_on(signum: int, frame: object) -> None:
        if run.asked_to_stop:
            raise SystemExit(128 + signum)
        run.asked_to_stop = True
        _log.warning("received SIGTERM: the ranks finish their step and write a checkpoint; once more to stop at once")
        for member in run.members:
            with suppress(ProcessLookupError):
                os.kill(member.pid, signum)

    before: Callable[..., Any] | int | None = signal.signal(signal.SIGTERM, pass_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
