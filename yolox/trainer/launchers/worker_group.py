"""The processes of a run, as their supervisor sees them: on this machine or on others."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Protocol

from yolox.processes.start import kill_all
from yolox.trainer.launchers.base import Phase
from yolox.trainer.launchers.heartbeat import CpuActivity, read_cpu_activity, read_heartbeat
from yolox.trainer.launchers.worker import RunDirectory


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
