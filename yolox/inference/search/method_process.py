"""The parent's side of a method's process: start it, listen with a time limit, ask for rounds, end it."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yolox
from yolox.inference.backends.base import Method
from yolox.inference.search.jobs import Job
from yolox.inference.search.latency import MeasurePlan
from yolox.inference.search.stages import Stage, Status

__all__ = ["MethodProcess", "ProcessFailure"]

_ROOT = str(Path(yolox.__file__).parents[1])
_START = """import json, sys
sys.path[:0] = json.loads(sys.argv[3])
from yolox.inference.search.method_worker import run
run()"""
STOP_SECONDS = 3.0


class ProcessFailure(Exception):  # noqa: N818 - the failure of a process, an expected outcome
    """A process that ended, or was ended, without a result.

    Args:
        reason: One line.
        status: What it means for the method: what the process itself said, or what follows from its stage.
        timed_out: Whether it was ended because its time was up.
        peak_memory_mb: Its largest resident set, if it told.
    """

    def __init__(
        self, reason: str, status: Status, *, timed_out: bool = False, peak_memory_mb: float | None = None
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status
        self.timed_out = timed_out
        self.peak_memory_mb = peak_memory_mb


class MethodProcess:
    """One method in a fresh interpreter with its own threads, allocator and libraries.

    Args:
        method: The method.
        job: What to do.
        log: File for all that it prints.
        interpreter: The Python to use.
    """

    def __init__(self, method: Method, job: Job, log: Path, interpreter: str = sys.executable) -> None:
        self.method = method
        self.log = log
        self.stage = Stage.STARTING
        job_file = Path(job.payload) / f"job_{method.name}.json"
        job_file.write_text(json.dumps(asdict(job)), encoding="utf-8")
        ours, theirs = socket.socketpair()
        arguments = [str(job_file), str(theirs.fileno()), json.dumps(_search_path(interpreter))]
        try:
            with log.open("ab") as output:
                self._process = subprocess.Popen(
                    [interpreter, "-c", _START, *arguments],
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C belongs to the parent alone
                    env={**os.environ, "OMP_NUM_THREADS": str(job.threads), "PYTHONUNBUFFERED": "1"},
                )
        finally:
            theirs.close()
        self._socket = ours
        self._buffer = b""

    def wait(self, seconds: float, on_progress: Callable[[str], None] = lambda message: None) -> dict[str, Any]:
        """Return the next message that is no progress.

        Raises:
            ProcessFailure: When the process fails, dies or takes longer than ``seconds``; it has ended then.
        """
        deadline = time.monotonic() + seconds
        while True:
            message = self._next_message(deadline, seconds)
            if message["event"] == "progress":
                self.stage = Stage(message["stage"])
                on_progress(message["message"])
                continue
            if message["event"] == "failed":
                self.stop()
                raise ProcessFailure(
                    message["reason"], Status(message["status"]), peak_memory_mb=message["peak_memory_mb"]
                )
            return message

    def proceed(self) -> None:
        """Let a prepared method go on: nothing else computes now."""
        self._send({"command": "go"})

    def measure(self, plan: MeasurePlan, seconds: float) -> dict[str, Any]:
        """Ask for one round and return its message (``samples``, ``peak_memory_mb``).

        Raises:
            ProcessFailure: As ``wait``.
        """
        self._send({"command": "measure", "plan": asdict(plan)})
        return self.wait(seconds)

    def stop(self) -> None:
        """End the process and all it started; calling it again does no harm."""
        if self._process.poll() is None:
            self._send({"command": "exit"})
            try:
                self._process.wait(STOP_SECONDS if self.stage is Stage.MEASURING else 0.2)
            except subprocess.TimeoutExpired:
                self._kill()
        self._kill_group()
        self._process.wait()
        self._socket.close()

    def _kill(self) -> None:
        self._process.kill()

    def _kill_group(self) -> None:
        # compilers and loaders that the process left behind share its session
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _send(self, command: dict[str, Any]) -> None:
        with suppress(OSError):  # it has died; the next read says how
            self._socket.sendall((json.dumps(command) + "\n").encode())

    def _next_message(self, deadline: float, seconds: float) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._socket], [], [], left)[0]:
                self._kill()
                self.stop()
                reason = f"stopped after {seconds:.0f} s while {self.stage.value}"
                raise ProcessFailure(reason, self.stage.failure, timed_out=True)
            try:
                chunk = self._socket.recv(1 << 16)
            except ConnectionResetError:
                chunk = b""
            if not chunk:
                raise ProcessFailure(self._death(), self.stage.failure)
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        message: dict[str, Any] = json.loads(line)
        return message

    def _death(self) -> str:
        self._process.wait()
        self.stop()
        code = self._process.returncode
        if code < 0:
            return f"killed by signal {-code} ({signal.Signals(-code).name}) while {self.stage.value}"
        lines = [line for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return (
            f"ended with code {code} while {self.stage.value}: {lines[-1].strip() if lines else 'it printed nothing'}"
        )


def _search_path(interpreter: str) -> list[str]:
    """Return what the child needs to import what the parent can; of another Python's own packages, nothing."""
    # only where this process itself imports from its working directory, written as ''
    here = [*(entry or os.getcwd() for entry in sys.path), _ROOT]
    if interpreter != sys.executable:  # an installed copy of this package lies among our own packages: theirs is used
        here = [entry for entry in here if not entry.startswith((sys.prefix, sys.base_prefix))]
    return list(dict.fromkeys(here))
