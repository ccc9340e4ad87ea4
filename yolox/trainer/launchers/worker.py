"""The inside of a worker process: take its place, run the function, write down how it ended.

The main script of the parent is never run again.
"""

from __future__ import annotations

import faulthandler
import json
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle

from yolox.cpu.allocator import keep_freed_memory
from yolox.cpu.threads import bind_process
from yolox.processes.messages import from_json, to_json
from yolox.processes.pickling import dumps
from yolox.processes.start import keep_sockets_in
from yolox.trainer.launchers.base import Failure, FailureKind, Phase, RankFile, Slot, Worker
from yolox.trainer.launchers.heartbeat import Heartbeat

_FAILED = 1


@dataclass(frozen=True)
class Setup:
    """The settings that all workers of one parent share.

    Args:
        slots: The slots of the ranks that this parent starts.
        rendezvous: Where all ranks meet.
        first_local_rank: Number, on this machine, of the first of the slots.
        node_rank: Number of this machine.
    """

    slots: tuple[Slot, ...]
    rendezvous: str
    first_local_rank: int = 0
    node_rank: int = 0

    def worker(self, rank: int, beat: Callable[[Phase], None]) -> Worker:
        """Return the place of one rank."""
        number = [slot.rank for slot in self.slots].index(rank)
        return Worker(self.slots[number], self.rendezvous, beat, self.first_local_rank + number, self.node_rank)


@dataclass(frozen=True)
class RunDirectory:
    """The folder through which parent and workers exchange files.

    Args:
        path: A private folder that is deleted after the run.
    """

    path: Path

    @property
    def payload(self) -> Path:
        """The file of the pickled function."""
        return self.path / "payload.pkl"

    @property
    def rendezvous(self) -> str:
        """A file where the ranks meet: no port to choose, none to be taken."""
        return f"file://{self.path / 'rendezvous'}"

    def file(self, kind: RankFile, rank: int) -> Path:
        """Return what a rank writes; rank 0 prints for the user instead of into its ``output``."""
        return self.path / f"{kind}-{rank}"

    def place(self, slots: Sequence[Slot], function: Callable[[Worker], Any]) -> None:
        """Write what workers of this machine need.

        Raises:
            UsageError: When the function holds something that cannot be pickled.
        """
        self.payload.write_bytes(dumps(function, "the run"))
        self.write_setup(Setup(tuple(slots), self.rendezvous))

    def write_setup(self, setup: Setup) -> None:
        """Write what the workers need to know."""
        (self.path / "setup.json").write_text(json.dumps(to_json(setup)), encoding="utf-8")

    def read_setup(self) -> Setup:
        """Return what the parent wrote."""
        setup: Setup = from_json(Setup, json.loads((self.path / "setup.json").read_text(encoding="utf-8")))
        return setup


def serve(path: str, rank: int) -> int:
    """Run the function of a run directory as ``rank``; return the exit code of the process.

    Args:
        path: The run directory.
        rank: Which of its slots this process is.
    """
    directory = RunDirectory(Path(path))
    keep_sockets_in(path)  # it is removed whatever becomes of this process
    setup = directory.read_setup()
    worker = setup.worker(rank, Heartbeat(directory.file("heartbeat", rank)))
    stacks = directory.file("stacks", rank).open("w", encoding="utf-8")  # stays open: faulthandler writes at any time
    faulthandler.enable(stacks)
    if hasattr(signal, "SIGUSR1"):
        faulthandler.register(signal.SIGUSR1, stacks)
    bind_process(worker.slot.cpus)
    keep_freed_memory()
    try:
        function = _load(directory, worker.slot)
        _write(directory.file("result", rank), cloudpickle.dumps(function(worker)))
    except BaseException as error:  # noqa: BLE001 - whatever ends a rank must reach the parent
        _write(directory.file("failure", rank), describe_failure(error, rank))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_FAILED)  # exit handlers may wait for ranks that are stuck
    return 0


def describe_failure(error: BaseException, rank: int) -> bytes:
    """Return a pickled `Failure`; the exception itself is in it only if it can be read back."""
    kind: FailureKind = "exited" if isinstance(error, SystemExit) else "raised"
    summary = f"{type(error).__name__}: {error}"
    text = "".join(traceback.format_exception(error))
    whole = Failure(rank, kind, summary, text, time.time(), error)
    try:
        content = cloudpickle.dumps(whole)
        pickle.loads(content)
    except Exception:  # noqa: BLE001 - any object may refuse in any way; its text is enough
        content = pickle.dumps(Failure(rank, kind, summary, text, whole.at))
    return bytes(content)


def _load(directory: RunDirectory, slot: Slot) -> Callable[[Worker], Any]:
    import torch

    torch.set_num_threads(slot.threads)
    with directory.payload.open("rb") as handle:
        function: Callable[[Worker], Any] = pickle.load(handle)
    return function


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
