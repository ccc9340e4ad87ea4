"""The processes of one run as their supervisor sees them, here or elsewhere; it watches them until all have ended."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

from yolox.errors import YoloxError
from yolox.processes.start import kill_all, tail
from yolox.trainer.launchers.base import Failure, Phase, RankError, first_cause
from yolox.trainer.launchers.heartbeat import (
    CpuActivity,
    HangLimits,
    HangWatch,
    RankActivity,
    is_busy,
    read_cpu_activity,
    read_heartbeat,
)
from yolox.trainer.launchers.worker import RunDirectory

_POLL_SECONDS = 0.1
_LOOK_SECONDS = 1.0
_PAUSE_SECONDS = 5.0
_SETTLE_SECONDS = 0.5  # after the first failure, for the failures that came before it but show later
_STACK_SECONDS = 1.0  # for the ranks to write down what they are doing
_ECHO_SECONDS = 3.0  # when all that is known so far is that somebody else is gone
_EXIT_SECONDS = 10.0  # from the result to the end of the process
_WAITING_FRAMES = ("torch/distributed/", "_engine_run_backward", "lightning_fabric/utilities/distributed")
_log = logging.getLogger(__name__)


class WorkerGroup(Protocol):
    """The processes of a run by rank; what they write arrives in the supervisor's run directory."""

    @property
    def world(self) -> int:
        """Number of processes."""

    def poll(self, rank: int) -> int | None:
        """Return the exit code of a process, negative for a signal, or None while it runs."""

    def send(self, rank: int, signum: int) -> None:
        """Send a signal to one process, if it still runs."""

    def cpu_activities(self) -> Mapping[int, CpuActivity]:
        """Return what each process has done so far."""

    def heartbeat(self, rank: int) -> tuple[int, Phase]:
        """Return the signs of life of a process so far, and what it is doing."""

    def where(self, rank: int) -> str:
        """Return the name of the machine of a process; empty for this one."""

    def kill(self) -> None:
        """Kill all processes and their children, and wait until they are gone."""


class LocalWorkerGroup:
    """Processes that this one has started.

    Args:
        members: By rank; may still grow.
        directory: Where they write.
    """

    def __init__(self, members: Sequence[subprocess.Popen[bytes]], directory: RunDirectory) -> None:
        self.members = members
        self.directory = directory

    @property
    def world(self) -> int:
        """Number of processes."""
        return len(self.members)

    def poll(self, rank: int) -> int | None:
        """Return the exit code of a process, or None."""
        return self.members[rank].poll()

    def send(self, rank: int, signum: int) -> None:
        """Send a signal to one process."""
        with suppress(ProcessLookupError):
            os.kill(self.members[rank].pid, signum)

    def cpu_activities(self) -> dict[int, CpuActivity]:
        """Return what each process has done so far."""
        by_pid = read_cpu_activity([member.pid for member in self.members])
        return {rank: by_pid[member.pid] for rank, member in enumerate(self.members)}

    def heartbeat(self, rank: int) -> tuple[int, Phase]:
        """Return the signs of life of a process so far, and what it is doing."""
        return read_heartbeat(self.directory.file("heartbeat", rank))

    def where(self, rank: int) -> str:
        """Return an empty name: they are all here."""
        return ""

    def kill(self) -> None:
        """Kill the members and their children, and wait until the members are gone."""
        kill_all(self.members)


@dataclass
class _Run:
    directory: RunDirectory
    group: WorkerGroup
    limits: HangLimits | None
    stop_signal: int = 0

    @property
    def world(self) -> int:
        return self.group.world


def supervise(directory: RunDirectory, group: WorkerGroup, limits: HangLimits | None) -> list[Any]:
    """Wait for all processes; return their results by rank.

    SIGTERM and Ctrl-C are passed on to them once, so that they can end in order; a second one or any failure kills
    them.

    Raises:
        RankError: When a rank failed or the run hangs.
        YoloxError: When a rank raised it.
        SystemExit: When a rank ended itself so.
        KeyboardInterrupt: After Ctrl-C, where the ranks had nothing to save.
    """
    run = _Run(directory, group, limits)
    try:
        with _passing_signals_on(run):
            _wait(run)
        return [pickle.loads(directory.file("result", rank).read_bytes()) for rank in range(run.world)]
    finally:
        group.kill()


def _wait(run: _Run) -> None:
    watch = _Watcher(run)
    finished: dict[int, float] = {}
    while True:
        failures = list(_failures(run))
        if failures:
            _raise(run, _settled(run))
        now = time.monotonic()
        for rank in range(run.world):
            if run.directory.file("result", rank).exists():
                finished.setdefault(rank, now)
        ended = [run.group.poll(rank) is not None or now - at > _EXIT_SECONDS for rank, at in finished.items()]
        if len(ended) == run.world and all(ended):
            return
        watch.look(now, [rank for rank in range(run.world) if rank not in finished])
        time.sleep(_POLL_SECONDS)


class _Watcher:
    """Looks once a second whether the run hangs."""

    def __init__(self, run: _Run) -> None:
        self.run = run
        self.watch = HangWatch(run.limits) if run.limits is not None and Path("/proc/self/stat").exists() else None
        self._last: Mapping[int, CpuActivity] = {}
        self._last_at = 0.0

    def look(self, now: float, ranks: Sequence[int]) -> None:
        elapsed = now - self._last_at
        if self.watch is None or elapsed < _LOOK_SECONDS:
            return
        readings = self.run.group.cpu_activities()
        activities = []
        for rank in ranks:
            beats, phase = self.run.group.heartbeat(rank)
            # a parent that was paused itself knows nothing of the time in between
            busy = elapsed > _PAUSE_SECONDS or is_busy(self._last.get(rank), readings.get(rank, CpuActivity()), elapsed)
            activities.append(RankActivity(rank, phase, beats, busy))
        self._last, self._last_at = readings, now
        reason = self.watch.look(now, activities)
        if reason is not None:
            _raise(self.run, _describe_hang(self.run, reason, activities))


def _settled(run: _Run) -> Failure:
    """Return the failure that brought the others about, once it has had time to show."""
    deadline = time.monotonic() + _ECHO_SECONDS
    while True:
        time.sleep(_SETTLE_SECONDS)
        cause = first_cause(list(_failures(run)))
        if not cause.is_echo or time.monotonic() > deadline:
            return cause


def _failures(run: _Run) -> Iterator[Failure]:
    for rank in range(run.world):
        code = run.group.poll(rank)  # before the files: a process writes them while it lives
        path = run.directory.file("failure", rank)
        if path.exists():
            yield pickle.loads(path.read_bytes())
        elif code is not None and not run.directory.file("result", rank).exists():
            yield _describe_end(run, rank, code)


def _describe_end(run: _Run, rank: int, code: int) -> Failure:
    stacks, output = tail(run.directory.file("stacks", rank), 200), tail(run.directory.file("output", rank))
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


def _describe_hang(run: _Run, reason: str, ranks: Sequence[RankActivity]) -> Failure:
    """Ask every rank for its stacks; the one that does not wait for the others is the one to blame."""
    for activity in ranks:
        with suppress(AttributeError):  # some systems lack the signal
            run.group.send(activity.rank, signal.SIGUSR1)
    time.sleep(_STACK_SECONDS)
    stacks = {activity.rank: tail(run.directory.file("stacks", activity.rank), 200) for activity in ranks}
    own = [rank for rank, text in stacks.items() if not any(mark in text for mark in _WAITING_FRAMES)]
    fewest = min(activity.beats for activity in ranks)
    behind = [activity.rank for activity in ranks if activity.beats == fewest]
    suspect = (own or behind)[0]
    phase = next(activity.phase for activity in ranks if activity.rank == suspect)
    return Failure(suspect, "hangs", f"{reason}; phase '{phase}'", stacks[suspect], time.time())


def _raise(run: _Run, failure: Failure) -> NoReturn:
    where = run.group.where(failure.rank)
    summary = f"on {where}: {failure.summary}" if where else failure.summary
    rank_error = RankError(failure.rank, run.world, failure.kind, summary, failure.traceback_text)
    if isinstance(failure.error, YoloxError):
        error = copy(failure.error)
        error.args = (f"on {where}: {error}",) if where else error.args
        raise error from rank_error
    if isinstance(failure.error, KeyboardInterrupt) and run.stop_signal:
        raise KeyboardInterrupt from rank_error
    if isinstance(failure.error, SystemExit):
        raise SystemExit(failure.error.code)
    raise rank_error from failure.error


def describe_stop(signum: int) -> str:
    """Return what to tell of the first signal that asks a run to stop."""
    name = "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name
    return f"{name}: finishing the step, then writing a checkpoint; once more to stop at once"


@contextmanager
def _passing_signals_on(run: _Run) -> Iterator[None]:
    """Send SIGTERM and Ctrl-C on to the workers; only the main thread may ask for that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def pass_on(signum: int, frame: object) -> None:
        if run.stop_signal:
            raise KeyboardInterrupt if signum == signal.SIGINT else SystemExit(128 + signum)
        run.stop_signal = signum
        _log.warning("%s", describe_stop(signum))
        for rank in range(run.world):
            run.group.send(rank, signum)

    heard = [number for number in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, pass_on) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
