"""Sides of a comparison as processes that stay alive: the parent asks each in turn for a round of steps.

Threads, allocator and libraries differ from side to side, hence the processes; rounds alternate, so that drift of the
machine hits all sides alike. Messages are JSON lines through a socket; what a side prints goes to its log.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.protocol import ROOT
from yolox.cpu.openmp import shorten_waits
from yolox.inference.search.latency import interleave

__all__ = ["Channel", "Side", "measure_sides", "peak_memory_mb", "timed_steps"]

_MALLOC_SETTINGS = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_")
START_SECONDS = 300.0


class Channel:
    """The side's end of the line to its parent."""

    def __init__(self, descriptor: int) -> None:
        self._file = socket.socket(fileno=descriptor).makefile("rw", encoding="utf-8")

    def commands(self) -> Iterator[dict[str, Any]]:
        """Yield the parent's commands until it hangs up; the first asks whether this side is ready."""
        for line in self._file:
            yield json.loads(line)

    def reply(self, **values: Any) -> None:
        """Answer a command."""
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()


def peak_memory_mb() -> float:
    """Return the largest resident set of this process so far (VmHWM)."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def timed_steps(channel: Channel, explain: Callable[[], Any] | None = None) -> Iterator[None]:
    """Yield once for each step that the parent wants and time what happens until the next one is asked for.

    Args:
        channel: The line to the parent.
        explain: Gives a context manager around the steps of a round that the parent wants explained; its ``groups``
            then say where the time went.
    """
    for command in channel.commands():
        context = explain() if explain is not None and command.get("explain") else None
        with context or contextlib.nullcontext():
            seconds = []
            for _ in range(command["steps"]):
                start = time.perf_counter()
                yield
                seconds.append(time.perf_counter() - start)
        channel.reply(seconds=seconds, peak_memory_mb=peak_memory_mb(), groups=getattr(context, "groups", None))


class Side:
    """One side of a comparison: a function that runs in a process of its own.

    Args:
        name: Name of its row.
        target: ``module:function``; the function takes the settings and a `Channel`.
        settings: JSON values for it; with ``as_tool`` the process starts as our tools do.
        our_allocator: Whether it is one of ours; other sides keep glibc's default.
        interpreter: The Python to use.
    """

    def __init__(
        self,
        name: str,
        target: str,
        settings: Mapping[str, Any],
        *,
        our_allocator: bool = True,
        interpreter: str = sys.executable,
    ) -> None:
        self.name = name
        self.settings = dict(settings)
        environment = {key: value for key, value in os.environ.items() if key not in _MALLOC_SETTINGS}
        environment.update(PYTHONPATH=str(ROOT), TORCH_CPP_LOG_LEVEL="ERROR")
        environment["YOLOX_MALLOPT"] = "1" if our_allocator else "0"
        ours, theirs = socket.socketpair()
        self._log = tempfile.TemporaryFile("w+", prefix="benchmark-", encoding="utf-8")  # noqa: SIM115 - lives as long
        with theirs:
            self._process = subprocess.Popen(
                [interpreter, "-m", "benchmarks.child", target, str(theirs.fileno()), json.dumps(self.settings)],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=ROOT,
            )
        self._socket = ours
        self._file = ours.makefile("rw", encoding="utf-8")

    def ask(self, seconds: float = START_SECONDS, **command: Any) -> dict[str, Any]:
        """Send a command and return the answer.

        Raises:
            RuntimeError: When the process has ended or takes longer than ``seconds``; its last output is quoted.
        """
        self._socket.settimeout(seconds)
        line = ""
        with contextlib.suppress(OSError):
            self._file.write(json.dumps(command) + "\n")
            self._file.flush()
            line = self._file.readline()
        if not line:
            self._log.seek(0)
            said = self._log.read()[-3000:]
            self.close()
            raise RuntimeError(f"side '{self.name}' gave no answer within {seconds:.0f} s:\n{said}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(OSError):
            self._file.close()
        self._socket.close()
        self._log.close()


def measure_sides(
    sides: Sequence[Side], *, rounds: int, steps: int, warmup: int, explain: bool = False
) -> dict[str, dict[str, Any]]:
    """Run all sides in alternating rounds and end them.

    Args:
        sides: Living sides.
        rounds: Rounds of each side.
        steps: Steps of a round.
        warmup: Untimed steps before the first round.
        explain: Whether a last, untimed round tells where the time goes.

    Returns:
        For each side ``seconds`` of all its steps, ``peak_memory_mb`` and ``groups``.
    """
    try:
        for side in sides:
            side.ask(steps=warmup)
        found: dict[str, dict[str, Any]] = {side.name: {"seconds": []} for side in sides}
        by_name = {side.name: side for side in sides}
        for _, name in interleave(list(by_name), rounds):
            answer = by_name[name].ask(steps=steps)
            found[name]["seconds"] += answer["seconds"]
            found[name]["peak_memory_mb"] = answer["peak_memory_mb"]
        for side in sides if explain else ():
            found[side.name]["groups"] = side.ask(steps=min(steps, 3), explain=True)["groups"]
        return found
    finally:
        for side in sides:
            side.close()


def main() -> None:
    """Run ``module:function`` with the settings and the channel that the parent gave."""
    target, descriptor, text = sys.argv[1:]
    settings = json.loads(text)
    if settings.get("as_tool"):
        shorten_waits()
    module, function = target.split(":")
    getattr(importlib.import_module(module), function)(settings, Channel(int(descriptor)))


if __name__ == "__main__":
    main()
