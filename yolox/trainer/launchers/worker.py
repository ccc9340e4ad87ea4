"""The inside of a worker process: take its place, run the function, write down how it ended.

Run as ``python -m yolox.trainer.launchers.worker FOLDER RANK``; the main script of the parent is never run again.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cloudpickle

from yolox.cpu.affinity import bind_process
from yolox.cpu.allocator import keep_freed_memory
from yolox.trainer.launchers.base import Failure, FailureKind, Slot, Worker
from yolox.trainer.launchers.heartbeat import Heart

__all__ = ["Desk", "serve"]

_PR_SET_PDEATHSIG = 1
_FAILED = 1


@dataclass(frozen=True)
class Desk:
    """The folder through which parent and workers exchange files.

    Args:
        folder: A private folder that is deleted after the run.
    """

    folder: Path

    @property
    def payload(self) -> Path:
        """The function to run."""
        return self.folder / "payload.pkl"

    @property
    def rendezvous(self) -> str:
        """A file where the ranks meet: no port to choose, none to be taken."""
        return f"file://{self.folder / 'rendezvous'}"

    def result(self, rank: int) -> Path:
        """What the function returned."""
        return self.folder / f"result-{rank}.pkl"

    def failure(self, rank: int) -> Path:
        """Why it did not return."""
        return self.folder / f"failure-{rank}.pkl"

    def heart(self, rank: int) -> Path:
        """Signs of life."""
        return self.folder / f"heart-{rank}"

    def stacks(self, rank: int) -> Path:
        """Stacks of all threads, when asked for or after a crash in native code."""
        return self.folder / f"stacks-{rank}.txt"

    def output(self, rank: int) -> Path:
        """Standard output and error of ranks other than 0."""
        return self.folder / f"output-{rank}.txt"

    def place(self, slots: Sequence[Slot], function: Callable[[Worker], Any]) -> None:
        """Write what the workers need.

        Raises:
            pickle.PicklingError: When the function holds something that cannot be sent.
        """
        self.payload.write_bytes(cloudpickle.dumps(function))
        content = {"slots": [asdict(slot) for slot in slots], "path": sys.path, "parent": os.getpid()}
        (self.folder / "setup.json").write_text(json.dumps(content), encoding="utf-8")

    def read_setup(self) -> tuple[list[Slot], list[str], int]:
        """Return the slots, the parent's import path and its process id."""
        content = json.loads((self.folder / "setup.json").read_text(encoding="utf-8"))
        slots = [Slot(**{**slot, "cpus": tuple(slot["cpus"])}) for slot in content["slots"]]
        return slots, content["path"], content["parent"]


def serve(desk: Desk, rank: int) -> int:
    """Run the function of the desk as ``rank``; return the exit code of the process."""
    slots, import_path, parent = desk.read_setup()
    slot = slots[rank]
    end_with_parent(parent)
    stacks = desk.stacks(rank).open("w", encoding="utf-8")  # stays open: faulthandler writes to it at any time
    faulthandler.enable(stacks)
    if hasattr(signal, "SIGUSR1"):
        faulthandler.register(signal.SIGUSR1, stacks)
    bind_process(slot.cpus)
    keep_freed_memory()
    sys.path[:] = import_path
    try:
        function = _load(desk, slot)
        worker = Worker(slot, desk.rendezvous, Heart(desk.heart(rank)), local_rank=rank)
        _write(desk.result(rank), cloudpickle.dumps(function(worker)))
    except BaseException as error:  # noqa: BLE001 - whatever ends a rank must reach the parent
        _write(desk.failure(rank), describe_failure(error, rank))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_FAILED)  # exit handlers may wait for ranks that are stuck
    return 0


def end_with_parent(parent: int) -> None:
    """Make the kernel kill this process when its parent dies; where it cannot, watch the parent from a thread."""
    try:
        armed = ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0
    except (AttributeError, OSError, TypeError):
        armed = False
    if os.getppid() != parent:  # it died before the kernel knew
        os._exit(_FAILED)
    if not armed:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


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


def main(argv: Sequence[str]) -> int:
    """Serve ``argv = [folder, rank]``."""
    return serve(Desk(Path(argv[0])), int(argv[1]))


def _load(desk: Desk, slot: Slot) -> Callable[[Worker], Any]:
    import torch

    torch.set_num_threads(slot.threads)
    with desk.payload.open("rb") as handle:
        function: Callable[[Worker], Any] = pickle.load(handle)
    return function


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(_FAILED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
