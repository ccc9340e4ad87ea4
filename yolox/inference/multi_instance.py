"""Several processes that run the same model side by side on cores of their own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any

from yolox.cpu.cores import CoreShare, chosen_shares, share_cores
from yolox.cpu.machine import read_machine, restricted
from yolox.errors import UsageError, YoloxError
from yolox.inference.artifacts.model import AcceleratedModel, copy_artifact, save_model
from yolox.inference.artifacts.structure import unflatten
from yolox.inference.backends.base import as_numpy, like_inputs
from yolox.inference.runner_process import Batch, Failed, await_loaded, start_runner
from yolox.processes.start import Process, ProcessFailure, wait_for_any
from yolox.temporary_folders import TemporaryFolder

if TYPE_CHECKING:
    from torch import nn


class MultiInstance:
    """Call it with an iterable of batches (a tensor, an array or a tuple of them each); outputs come in order.

    Close it, or use it in a ``with`` statement, to end the processes. After a batch that failed it can be called again.

    Args:
        model: The model, saved or not.
        num_processes: How many processes.
        cores_per_process: Cores of each; ``None`` shares out all of them.
        cpu_for_each_process: The hardware threads of each process by number, instead.

    Raises:
        UsageError: When there are not enough cores.
        ModelFileError: When a process cannot load the model.
    """

    def __init__(
        self,
        model: AcceleratedModel,
        num_processes: int = 4,
        cores_per_process: int | None = None,
        cpu_for_each_process: Sequence[Sequence[int]] | None = None,
    ) -> None:
        shares = _shares(num_processes, cores_per_process, cpu_for_each_process)
        self._structure = model.manifest.structure
        self._lock = Lock()
        self._number = 0
        self._processes: list[Process] = []
        self._working: dict[Process, int] = {}  # and on which request; it may be one of a call that failed
        self._folder = TemporaryFolder("instances")
        try:
            folder = self._folder.path
            artifact, module = folder / "artifact", _send_module(model.module, folder / "module.pkl")
            if model.folder is not None:
                copy_artifact(model.folder, artifact)
            else:
                save_model(model, artifact)
            for share in shares:
                settings = replace(model.runner.settings, threads=share.threads)
                self._processes.append(start_runner(artifact, settings, cpus=share.cpus, module=module))
            for process in self._processes:
                await_loaded(process, artifact)
        except BaseException:
            self.close()
            raise

    def __call__(self, batches: Iterable[Any]) -> list[Any]:
        """Run all batches.

        Raises:
            UsageError: When it has been closed.
            YoloxError: When the model fails on a batch; or when a process has died, and then all are ended.
        """
        with self._lock:
            if not self._processes:
                raise UsageError("this MultiInstance is closed: its processes have ended. Make a new one.")
            try:
                return self._run(batches)
            except ProcessFailure as failure:
                self.close()
                raise YoloxError(
                    f"a process of the model {failure.reason}. All of them have been ended; make a new MultiInstance."
                ) from failure
            except KeyboardInterrupt:  # perhaps in the middle of a message
                self.close()
                raise

    def _run(self, batches: Iterable[Any]) -> list[Any]:
        todo = iter(enumerate(batches))
        asked: dict[int, tuple[int, tuple[Any, ...]]] = {}  # position and inputs by number of the request
        outputs: dict[int, Any] = {}
        while True:
            free = [process for process in self._processes if process not in self._working]
            for process, (position, batch) in zip(free, todo, strict=False):
                inputs = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
                arrays = tuple(as_numpy(array) for array in inputs)
                self._number += 1
                asked[self._number] = position, inputs
                self._working[process] = self._number
                process.send(Batch(self._number, arrays))
            if free and not asked:  # no batch is left, and none is on its way
                return [outputs[position] for position in sorted(outputs)]
            for process in wait_for_any(list(self._working)):
                answer = process.receive()
                del self._working[process]
                position, inputs = asked.pop(answer.number, (-1, ()))
                if position < 0:
                    continue  # of an earlier call, which has failed meanwhile
                if isinstance(answer, Failed):
                    raise YoloxError(f"the model failed on batch {position}: {answer.reason}")
                outputs[position] = unflatten(self._structure, like_inputs(answer.arrays, inputs))

    def close(self) -> None:
        """End the processes; calling it again does no harm."""
        for process in self._processes:
            process.stop()
        self._processes, self._working = [], {}
        self._folder.remove()

    def __enter__(self) -> MultiInstance:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _send_module(module: nn.Module | None, path: Path) -> Path | None:
    """Write the original module for the processes, where there is one."""
    if module is None:
        return None
    import cloudpickle

    path.write_bytes(cloudpickle.dumps(module))
    return path


def _shares(
    num_processes: int, cores_per_process: int | None, chosen: Sequence[Sequence[int]] | None
) -> tuple[CoreShare, ...]:
    """Return the cores of each process; more processes than cores share them in turn."""
    machine = read_machine()
    if num_processes < 1:
        raise UsageError(f"num_processes is {num_processes}; expected 1 or more.")
    if chosen is not None:
        if len(chosen) != num_processes:
            raise UsageError(f"cores for {len(chosen)} processes arrived, but num_processes is {num_processes}.")
        return chosen_shares(chosen, machine, [])
    if cores_per_process is not None:
        wanted = num_processes * cores_per_process
        if cores_per_process < 1 or wanted > machine.num_cores:
            raise UsageError(
                f"{num_processes} processes of {cores_per_process} cores: expected at least one core each, "
                f"and {machine.num_cores} in all, as many as this process may use."
            )
        machine = restricted(machine, [cpu.number for core in machine.cores[:wanted] for cpu in core])
    return share_cores(num_processes, machine, [])
