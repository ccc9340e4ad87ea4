"""The parent's side of a method's process: start it, listen with a time limit, ask for rounds, end it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from yolox.inference.backends.base import Method
from yolox.inference.search.latency import MeasurePlan
from yolox.inference.search.protocol import Failed, Go, Job, Measure, Prepared, Progress, Ready, Samples, Stage, Status
from yolox.processes.messages import to_json
from yolox.processes.start import Process, ProcessFailure, Program

_WORKER = "yolox.inference.search.method_worker:run"
STOP_SECONDS = 3.0
Message = TypeVar("Message")


def _tell_nobody(text: str) -> None:
    pass


class MethodFailure(ProcessFailure):
    """A method whose process ended, or was ended, without a result.

    Args:
        reason: One line.
        status: What it means for the method: what the process itself said, or what follows from its stage.
        timed_out: Whether it was ended because its time was up.
        peak_memory_mb: Its largest resident set, if it told.
    """

    def __init__(
        self, reason: str, status: Status, *, timed_out: bool = False, peak_memory_mb: float | None = None
    ) -> None:
        super().__init__(reason, timed_out=timed_out)
        self.status = status
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
        self.stage = Stage.STARTING
        scratch = Path(job.work_dir).parent  # of the libraries, too: a method that is stopped removes nothing
        environment = {
            "TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor"),
            **os.environ,
            "TMPDIR": str(scratch),
            "OMP_NUM_THREADS": str(job.threads),
            "PYTHONUNBUFFERED": "1",
        }
        program = Program(_WORKER, (to_json(job),), interpreter, environment)
        self._process = Process(program, (Progress, Prepared, Ready, Samples, Failed), log)

    @property
    def ended(self) -> bool:
        """Whether the process runs no longer."""
        return self._process.ended

    def await_prepared(self, seconds: float, on_progress: Callable[[str], None] = _tell_nobody) -> None:
        """Wait until the method has been converted.

        Raises:
            MethodFailure: When the process fails, dies or takes longer than ``seconds``; it has ended then.
        """
        self._receive(Prepared, seconds, on_progress)

    def finish(self, seconds: float, on_progress: Callable[[str], None] = _tell_nobody) -> Ready:
        """Let a prepared method tune itself, measure its accuracy and save itself; return what is known then.

        Raises:
            MethodFailure: As `await_prepared`.
        """
        self._process.send(Go())
        return self._receive(Ready, seconds, on_progress)

    def measure(self, plan: MeasurePlan, seconds: float) -> Samples:
        """Return the times of one round.

        Raises:
            MethodFailure: As `await_prepared`.
        """
        self._process.send(Measure(plan))
        return self._receive(Samples, seconds)

    def stop(self) -> None:
        """End the process and all it started; calling it again does no harm."""
        self._process.stop(STOP_SECONDS if self.stage is Stage.MEASURING else 0.0)

    def _receive(
        self, kind: type[Message], seconds: float, on_progress: Callable[[str], None] = _tell_nobody
    ) -> Message:
        deadline = time.monotonic() + seconds
        while True:
            try:
                message = self._process.receive(max(0.0, deadline - time.monotonic()))
            except ProcessFailure as failure:
                reason = failure.reason
                if failure.timed_out:
                    reason = f"stopped after {seconds:.0f} s while {self.stage.value}"
                raise MethodFailure(reason, self.stage.failure, timed_out=failure.timed_out) from failure
            if isinstance(message, Progress):
                self.stage = message.stage
                self._process.doing = message.stage.value
                on_progress(message.text)
            elif isinstance(message, Failed):
                self.stop()
                raise MethodFailure(message.reason, message.status, peak_memory_mb=message.peak_memory_mb)
            elif isinstance(message, kind):
                return message
