"""What a launcher is: it runs one function once per slot, all at the same time, and returns what they returned."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Phase = Literal["setup", "step", "data", "other"]
"""What a rank is doing: starting, computing a batch, fetching a batch, anything else (evaluation, files ...)."""

RankFile = Literal["result", "failure", "heartbeat", "stacks", "output"]
"""What a rank writes into the run directory: what the function returned, or why it did not; a record whose changes show
that it is alive; the stacks of all threads, when asked for or after a crash in native code; all that it prints."""

FailureKind = Literal["raised", "killed", "exited", "hangs", "lost"]

# messages of a rank that only noticed that another one is gone
_ECHO = re.compile(
    r"connection (closed|reset|refused|was)|broken pipe|gloo.*(pair|transport)|enforce fail|by peer|distnetwork|"
    r"wait timeout",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Slot:
    """The place of one process.

    Args:
        rank: Its number, from 0.
        world: Number of processes in all.
        cpus: Hardware threads it is bound to; empty: not bound.
        threads: Threads it computes with; 0 where the machine it will run on decides.
    """

    rank: int
    world: int
    cpus: tuple[int, ...] = ()
    threads: int = 1


def no_beat(phase: Phase) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Worker:
    """The facts that the function is given of the process it runs in.

    Args:
        slot: Its place.
        rendezvous: Where the ranks meet: ``init_method`` of ``torch.distributed.init_process_group``.
        beat: To be called with what comes next; a rank that stops calling is looked at.
        local_rank: Number of the process on its machine.
        node_rank: Number of the machine.
    """

    slot: Slot
    rendezvous: str
    beat: Callable[[Phase], None] = field(default=no_beat, compare=False)
    local_rank: int = 0
    node_rank: int = 0


class Launcher(Protocol):
    """Runs one function in one process for each slot."""

    def run(self, function: Callable[[Worker], Any], slots: Sequence[Slot]) -> list[Any]:
        """Return the results in the order of the slots, once every process has ended.

        Raises:
            RankError: When a rank failed; every process has been stopped then.
            YoloxError: When a rank raised it, as it was.
        """


class RankError(RuntimeError):
    """One rank failed, and the run with it.

    Args:
        rank: The rank that failed first.
        world: Number of ranks.
        kind: How it failed.
        summary: One line.
        traceback_text: Its own traceback, stack or last output; may be empty.
    """

    def __init__(self, rank: int, world: int, kind: FailureKind, summary: str, traceback_text: str = "") -> None:
        text = f"rank {rank} of {world} {kind}: {summary}"
        super().__init__(f"{text}\n{traceback_text.rstrip()}" if traceback_text else text)
        self.rank = rank
        self.world = world
        self.kind = kind
        self.summary = summary
        self.traceback_text = traceback_text

    def __reduce__(self) -> tuple[type[RankError], tuple[int, int, FailureKind, str, str]]:
        """Return how to pickle it."""
        return RankError, (self.rank, self.world, self.kind, self.summary, self.traceback_text)


@dataclass(frozen=True)
class Failure:
    """How a rank ended, as it wrote it down itself or as the system tells.

    Args:
        rank: Its number.
        kind: How it failed.
        summary: One line.
        traceback_text: Traceback, stack or last output.
        at: Time of the failure (``time.time``).
        error: The exception, where it could be sent.
    """

    rank: int
    kind: FailureKind
    summary: str
    traceback_text: str
    at: float
    error: BaseException | None = None

    @property
    def is_echo(self) -> bool:
        """Whether this rank only noticed that another one is gone."""
        return self.kind == "raised" and _ECHO.search(self.summary) is not None


def first_cause(failures: Sequence[Failure]) -> Failure:
    """Return the failure that brought the others about: killed and lost ranks first, echoes last, else the earliest."""
    return min(failures, key=lambda failure: (failure.is_echo, failure.kind not in ("killed", "lost"), failure.at))
