"""Python's own ``spawn``: the main script is imported again, so it needs ``if __name__ == "__main__":``."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from yolox.processes.inside import end_with_parent
from yolox.trainer.launchers.base import RankError, Slot, Worker
from yolox.trainer.launchers.heartbeat import HangLimits
from yolox.trainer.launchers.popen import worker_environment
from yolox.trainer.launchers.supervise import supervise
from yolox.trainer.launchers.worker import RunDirectory, serve
from yolox.trainer.launchers.worker_group import LocalWorkerGroup

_GUARD = (
    "; spawn imports the main script again, which must start nothing outside 'if __name__ == \"__main__\":'. "
    "Add that line, or take distributed_backend='subprocess'"
)


class SpawnLauncher:
    """Starts one ``multiprocessing`` process for each slot.

    Args:
        limits: When a run that does nothing is taken to hang; None for never.
    """

    def __init__(self, limits: HangLimits | None = HangLimits()) -> None:  # noqa: B008 - frozen
        self.limits = limits

    def run(self, function: Callable[[Worker], Any], slots: Sequence[Slot]) -> list[Any]:
        """Return the results by rank; see `Launcher`."""
        directory = RunDirectory(Path(tempfile.mkdtemp(prefix="yolox-run-")))
        members: list[_Spawned] = []
        group = LocalWorkerGroup(members, directory)
        try:
            directory.place(slots, function)
            context = multiprocessing.get_context("spawn")
            for slot in slots:
                process = context.Process(target=_enter, args=(str(directory.path), slot.rank, os.getpid()))
                with _environment(slot), _importable_main():
                    process.start()
                members.append(_Spawned(process))
            return supervise(directory, group, self.limits)
        except RankError as error:
            if error.kind == "exited":
                raise RankError(
                    error.rank, error.world, error.kind, error.summary + _GUARD, error.traceback_text
                ) from None
            raise
        finally:
            group.kill()
            shutil.rmtree(directory.path, ignore_errors=True)


class _Spawned:
    def __init__(self, process: BaseProcess) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid or 0

    def poll(self) -> int | None:
        return self._process.exitcode


def _enter(path: str, rank: int, parent: int) -> None:
    os.setsid()
    end_with_parent(parent)
    if rank:
        output = os.open(RunDirectory(Path(path)).output(rank), os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
    sys.exit(serve(path, rank))


@contextmanager
def _importable_main() -> Iterator[None]:
    """Hide the name of a main script that is no file (``python - < script``): nobody could import it again."""
    main = vars(sys.modules["__main__"])
    file = main.get("__file__")
    if file is None or Path(file).exists():
        yield
        return
    del main["__file__"]
    try:
        yield
    finally:
        main["__file__"] = file


@contextmanager
def _environment(slot: Slot) -> Iterator[None]:
    """Have a process started inside inherit the slot's environment: OpenMP reads it when it is loaded."""
    before = dict(os.environ)
    try:
        _replace(worker_environment(slot))
        yield
    finally:
        _replace(before)


def _replace(environment: dict[str, str]) -> None:
    for name in set(os.environ) - set(environment):
        del os.environ[name]
    os.environ.update(environment)
