"""A saved model in a process of its own: on cores of its own, or in a Python that has the library it needs."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from yolox.cpu.allocator import keep_freed_memory
from yolox.cpu.threads import bind_process, thread_environment
from yolox.errors import ModelFileError
from yolox.inference.backends.base import Settings, as_numpy
from yolox.processes.messages import Channel
from yolox.processes.start import Process, ProcessFailure, Program


@dataclass(frozen=True)
class Batch:
    """The inputs of one batch; the answer carries the same number."""

    number: int
    arrays: tuple[np.ndarray[Any, Any], ...]


@dataclass(frozen=True)
class Outputs:
    """The outputs of a batch, or with number -1 and no arrays: the model has been loaded."""

    number: int
    arrays: tuple[np.ndarray[Any, Any], ...]


@dataclass(frozen=True)
class Failed:
    """Why a batch (with number -1: loading) failed; the process can be asked again after a batch."""

    number: int
    reason: str


def start_runner(
    folder: Path,
    settings: Settings,
    python: str = sys.executable,
    cpus: Sequence[int] = (),
    module: Path | None = None,
) -> Process:
    """Start a process that loads an artifact and then answers each `Batch` with `Outputs` or `Failed`.

    `await_loaded` waits until it is ready. The artifact is trusted: it is one of this user's own, or was loaded before.

    Args:
        folder: The artifact.
        settings: How to run it.
        python: The interpreter.
        cpus: Hardware threads it is bound to; empty: not bound.
        module: A file with the original module, pickled by this process, for artifacts that hold weights alone.

    Raises:
        OSError: When the interpreter cannot be started.
    """
    environment = thread_environment(os.environ, settings.threads, bool(cpus))
    arguments = (str(folder), asdict(settings), list(cpus), None if module is None else str(module))
    process = Process(Program(f"{__name__}:serve", arguments, python, environment), (Outputs, Failed))
    process.doing = "loading the model"
    return process


def await_loaded(process: Process, folder: Path, python: str = sys.executable) -> None:
    """Wait until a process that `start_runner` has started is ready.

    Raises:
        ModelFileError: When it cannot load the artifact.
    """
    try:
        answer = process.receive()
    except ProcessFailure as failure:
        raise ModelFileError(f"'{folder}' cannot be loaded by {python}: its process {failure.reason}") from failure
    if isinstance(answer, Failed):
        process.stop()
        raise ModelFileError(f"'{folder}' cannot be loaded by {python}: {answer.reason}")
    process.doing = "running the model"


def serve(
    connection: Connection, folder: str, settings: Mapping[str, Any], cpus: Sequence[int], module: str | None = None
) -> int:
    """Answer batches until the other side hangs up; return the exit code."""
    import cloudpickle

    from yolox.inference.artifacts.model import load_model

    channel = Channel(connection, [Batch])
    bind_process(cpus)
    keep_freed_memory()
    try:
        own = None if module is None else cloudpickle.loads(Path(module).read_bytes())
        runner = load_model(folder, trust=True, module=own, settings=Settings(**settings)).runner
    except Exception as error:  # noqa: BLE001 - whatever it is, the other side reports it
        channel.send(Failed(-1, str(error)))
        return 1
    channel.send(Outputs(-1, ()))
    while True:
        try:
            batch: Batch = channel.receive()
        except EOFError:
            return 0
        try:
            answer: Outputs | Failed = Outputs(batch.number, tuple(as_numpy(array) for array in runner(*batch.arrays)))
        except Exception as error:  # noqa: BLE001 - as above
            answer = Failed(batch.number, f"{type(error).__name__}: {error}")
        channel.send(answer)
