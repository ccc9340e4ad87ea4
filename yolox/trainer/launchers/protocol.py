"""The messages between the supervisor of a run on a cluster and its agents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from yolox.cpu.machine import Machine
from yolox.trainer.launchers.base import Phase, RankFile
from yolox.trainer.launchers.heartbeat import CpuActivity
from yolox.trainer.launchers.worker import Setup


@dataclass(frozen=True)
class JoinInfo:
    """How an agent finds its supervisor.

    Args:
        address: Host and port.
        key: Shared secret.
        path: The supervisor's import path.
        folder: The folder it works in.
    """

    address: tuple[str, int]
    key: bytes
    path: tuple[str, ...]
    folder: str


@dataclass(frozen=True)
class Registration:
    """The facts that an agent reports of itself.

    Args:
        number: Which of the agents it is.
        label: Its machine, as the user knows it.
        identity: The same for agents on one machine.
        machine: What it may use.
        ranks: Number of processes it can start.
        threads: Threads that its engine has reserved for them in all; None for as many as the machine has.
    """

    number: int
    label: str
    identity: str
    machine: Machine
    ranks: int
    threads: int | None


@dataclass(frozen=True)
class StartRequest:
    """The request to an agent to start its ranks.

    Args:
        setup: The ranks, and what they have to know.
        payload: The pickled function.
        one_machine: Whether all ranks of the run are on this machine.
    """

    setup: Setup
    payload: bytes
    one_machine: bool


@dataclass(frozen=True)
class RankState:
    """How a rank is.

    Args:
        beats: Signs of life so far.
        phase: What it is doing.
        cpu_activity: What it has done.
        code: Its exit code, once it has ended.
    """

    beats: int
    phase: Phase
    cpu_activity: CpuActivity
    code: int | None


@dataclass(frozen=True)
class SendSignal:
    """The supervisor asks an agent to send a signal to a rank."""

    rank: int
    signum: int


@dataclass(frozen=True)
class States:
    """How the ranks of an agent are, by rank."""

    by_rank: Mapping[int, RankState]


@dataclass(frozen=True)
class Output:
    """Text that rank 0 has written to ``stdout`` or ``stderr``."""

    stream: str
    text: str


@dataclass(frozen=True)
class FilePart:
    """A part of a rank's ``result``, ``failure``, ``stacks`` or ``output`` file, and whether more parts follow."""

    kind: RankFile
    rank: int
    content: bytes
    more: bool


@dataclass(frozen=True)
class AllEnded:
    """All ranks of an agent have ended, and their files have been sent."""
