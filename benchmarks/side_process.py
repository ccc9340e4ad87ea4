"""Sides of a comparison as processes that stay alive: the parent asks each in turn for a round of steps.

Threads, allocator and libraries differ from side to side, hence the processes; rounds alternate, so that drift of the
machine hits all sides alike. What a side prints goes to its log.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.protocol import ROOT
from yolox.cpu.allocator import release_memory
from yolox.cpu.threads import shorten_waits
from yolox.inference.search.latency import interleave
from yolox.processes.inside import peak_memory_mb
from yolox.processes.messages import Channel
from yolox.processes.start import Process, ProcessFailure, Program

_MALLOC_SETTINGS = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_")
START_SECONDS = 300.0
CLOSE_SECONDS = 2.0
"""For a side to end by itself: PyTorch removes the files of a loaded package then."""


@dataclass(frozen=True)
class Command:
    """What the parent wants; JSON values."""

    values: Mapping[str, Any]


@dataclass(frozen=True)
class Reply:
    """What a side answers; JSON values."""

    values: Mapping[str, Any]


class CommandLine:
    """The side's end of the connection to its parent."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def commands(self) -> Iterator[dict[str, Any]]:
        """Yield the parent's commands until it hangs up; the first asks whether this side is ready."""
        with contextlib.suppress(EOFError):
            while True:
                yield self._channel.receive().values

    def reply(self, **values: Any) -> None:
        """Answer a command."""
        self._channel.send(Reply(values))


def timed_steps(channel: CommandLine, explain: Callable[[], Any] | None = None) -> Iterator[None]:
    """Yield once for each step that the parent wants and time what happens until the next one is asked for.

    With ``sharing`` a round gives its free memory back when it ends, for the sides that wait meanwhile, and takes it
    again in an untimed step.

    Args:
        channel: The line to the parent.
        explain: Gives a context manager around the steps of a round that the parent wants explained; its ``groups``
            then say where the time went.
    """
    for command in channel.commands():
        context = explain() if explain is not None and command.get("explain") else None
        with context or contextlib.nullcontext():
            seconds = []
            for number in range(-1 if command.get("sharing") else 0, command["steps"]):
                start = time.perf_counter()
                yield
                if number >= 0:
                    seconds.append(time.perf_counter() - start)
        if command.get("sharing"):
            release_memory()
        channel.reply(seconds=seconds, peak_memory_mb=peak_memory_mb(), groups=getattr(context, "groups", None))


class Side:
    """One side of a comparison: a function that runs in a process of its own.

    Args:
        name: Name of its row.
        target: ``module:function``; the function takes the settings and a `CommandLine`.
        settings: JSON values for it; with ``as_tool`` the process starts as our tools do.
        our_allocator: Whether it is one of ours; other sides keep glibc's default.
        interpreter: The Python to use.
        path: Folders to import from; None for those of this process.
    """

    def __init__(
        self,
        name: str,
        target: str,
        settings: Mapping[str, Any],
        *,
        our_allocator: bool = True,
        interpreter: str = sys.executable,
        path: Sequence[str] | None = None,
    ) -> None:
        self.name = name
        self.settings = dict(settings)
        environment = {key: value for key, value in os.environ.items() if key not in _MALLOC_SETTINGS}
        environment.update(TORCH_CPP_LOG_LEVEL="ERROR")
        environment["YOLOX_MALLOPT"] = "1" if our_allocator else "0"
        program = Program(f"{__name__}:serve", (target, self.settings), interpreter, environment, path, str(ROOT))
        self._process = Process(program, [Reply])
        self._process.doing = "running the side"

    def ask(self, seconds: float = START_SECONDS, **command: Any) -> dict[str, Any]:
        """Send a command and return the answer.

        Raises:
            RuntimeError: When the process has ended or takes longer than ``seconds``; its last output is quoted.
        """
        self._process.send(Command(command))
        try:
            values: dict[str, Any] = self._process.receive(seconds).values
        except ProcessFailure as failure:
            raise RuntimeError(f"side '{self.name}' {failure.reason}\n{failure.output}") from failure
        return values

    def close(self) -> None:
        """End the process."""
        self._process.stop(CLOSE_SECONDS)


def measure_sides(
    sides: Sequence[Side], *, rounds: int, steps: int, warmup: int, explain: bool = False, sharing: bool = False
) -> dict[str, dict[str, Any]]:
    """Run all sides in alternating rounds and end them.

    Args:
        sides: Living sides.
        rounds: Rounds of each side.
        steps: Steps of a round.
        warmup: Untimed steps before the first round.
        explain: Whether a last, untimed round tells where the time goes.
        sharing: Whether the sides are too large to keep their memory while they wait.

    Returns:
        For each side ``seconds`` of all its steps, ``peak_memory_mb``, and ``groups`` where they are explained.
    """
    try:
        for side in sides:
            side.ask(steps=warmup, sharing=sharing)
        found: dict[str, dict[str, Any]] = {side.name: {"seconds": []} for side in sides}
        by_name = {side.name: side for side in sides}
        for _, name in interleave(list(by_name), rounds):
            answer = by_name[name].ask(steps=steps, sharing=sharing)
            found[name]["seconds"] += answer["seconds"]
            found[name]["peak_memory_mb"] = answer["peak_memory_mb"]
        for side in sides if explain else ():
            answer = side.ask(steps=min(steps, 3), explain=True, sharing=sharing)
            found[side.name]["groups"] = answer["groups"]
        return found
    finally:
        for side in sides:
            side.close()


def serve(connection: Connection, target: str, settings: dict[str, Any]) -> None:
    """Run ``module:function`` with the settings and the connection to the parent."""
    if settings.get("as_tool"):
        shorten_waits()
    module, function = target.split(":")
    getattr(importlib.import_module(module), function)(settings, CommandLine(Channel(connection, [Command])))
