"""Several processes that run the same model side by side on cores of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any

from yolox.errors import UsageError, YoloxError
from yolox.inference.artifacts.model import AcceleratedModel, copy_artifact, load_model, save_model
from yolox.inference.artifacts.structure import unflatten
from yolox.inference.backends.base import as_numpy, like_inputs

__all__ = ["MultiInstance", "serve"]

_START = "import sys; from yolox.inference.multi_instance import serve; serve(*sys.argv[1:])"


class MultiInstance:
    """Call it with an iterable of batches (a tensor, an array or a tuple of them each); outputs come in order.

    Close it, or use it in a ``with`` statement, to end the processes.

    Args:
        model: The model, saved or not.
        num_processes: How many processes.
        cores_per_process: Cores of each; ``None`` shares out all of them.
        cpu_for_each_process: The cores of each process by number, instead.

    Raises:
        UsageError: When there are not enough cores.
    """

    def __init__(
        self,
        model: AcceleratedModel,
        num_processes: int = 4,
        cores_per_process: int | None = None,
        cpu_for_each_process: Sequence[Sequence[int]] | None = None,
    ) -> None:
        cores = _share_cores(num_processes, cores_per_process, cpu_for_each_process)
        self._structure = model.manifest.structure
        self._folder = Path(tempfile.mkdtemp(prefix="instances-"))
        if model.folder is not None:
            copy_artifact(model.folder, self._folder)
        else:
            save_model(model, self._folder)
        self._workers: list[tuple[subprocess.Popen[bytes], Connection]] = []
        try:
            for own in cores:
                self._workers.append(_start_worker(self._folder, own))
        except OSError:
            self.close()
            raise

    def __call__(self, batches: Iterable[Any]) -> list[Any]:
        """Run all batches.

        Raises:
            YoloxError: When a process fails; the message says why.
        """
        todo = deque(enumerate(batches))
        outputs: dict[int, Any] = {}
        inputs_of: dict[int, tuple[Any, ...]] = {}
        free = [connection for _, connection in self._workers]
        busy: list[Connection] = []
        while todo or busy:
            while todo and free:
                number, batch = todo.popleft()
                inputs = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
                inputs_of[number] = inputs
                connection = free.pop()
                connection.send((number, tuple(as_numpy(array) for array in inputs)))
                busy.append(connection)
            for ready in wait(busy):
                assert isinstance(ready, Connection)
                number, result = _receive(ready)
                outputs[number] = unflatten(self._structure, like_inputs(result, inputs_of.pop(number)))
                busy.remove(ready)
                free.append(ready)
        return [outputs[number] for number in sorted(outputs)]

    def close(self) -> None:
        """End the processes."""
        for process, connection in self._workers:
            with suppress(OSError):
                connection.send(None)
            connection.close()
            try:
                process.wait(3)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._workers = []
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> MultiInstance:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def serve(folder: str, descriptor: str, threads: str) -> None:
    """Answer batches until ``None`` comes: the process of one instance."""
    from dataclasses import replace

    model = load_model(folder)
    runner = model.runner.configured(replace(model.runner.settings, threads=int(threads)))
    connection = Connection(int(descriptor))
    while True:
        try:
            item = connection.recv()
        except EOFError:
            return
        if item is None:
            return
        number, inputs = item
        try:
            result: Any = runner(*inputs)
        except Exception as error:  # noqa: BLE001 - whatever the library raises is the caller's to see
            result = f"{type(error).__name__}: {error}"
        connection.send((number, result))


def _start_worker(folder: Path, cores: Sequence[int]) -> tuple[subprocess.Popen[bytes], Connection]:
    import socket

    ours, theirs = socket.socketpair()
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": str(len(cores))}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", _START, str(folder), str(theirs.fileno()), str(len(cores))],
            pass_fds=(theirs.fileno(),),
            env=environment,
        )
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(process.pid, set(cores))
    return process, Connection(ours.detach())


def _receive(connection: Connection) -> tuple[int, Any]:
    try:
        number, result = connection.recv()
    except (EOFError, OSError) as error:
        raise YoloxError("a process of the model died; its message is above. Start again.") from error
    if isinstance(result, str):
        raise YoloxError(f"the model failed on batch {number}: {result}")
    return number, result


def _share_cores(
    num_processes: int, cores_per_process: int | None, chosen: Sequence[Sequence[int]] | None
) -> list[list[int]]:
    if num_processes < 1:
        raise UsageError(f"num_processes is {num_processes}; expected 1 or more.")
    if chosen is not None:
        if len(chosen) != num_processes:
            raise UsageError(f"cores for {len(chosen)} processes arrived, but num_processes is {num_processes}.")
        return [list(own) for own in chosen]
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    each = cores_per_process or max(1, len(cores) // num_processes)
    if each * num_processes > len(cores) and cores_per_process is not None:
        raise UsageError(f"{num_processes} processes of {each} cores need more than the {len(cores)} cores here.")
    # more processes than cores share them in turn
    return [[cores[(index * each + offset) % len(cores)] for offset in range(each)] for index in range(num_processes)]
