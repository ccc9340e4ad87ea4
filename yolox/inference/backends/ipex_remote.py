"""Runs an IPEX artifact from a process that has no IPEX, in a child process of a Python that has.

Inputs and outputs travel through a socket, which costs some milliseconds for each hundred megabytes. Only bytes and
JSON do; nothing is unpickled.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from pathlib import Path
from shutil import copyfile
from typing import IO, Any

import numpy as np

from yolox.cpu.ipex_location import source_root
from yolox.errors import ModelFileError, YoloxError
from yolox.inference.backends.base import Array, Arrays, Manifest, Settings, as_numpy, like_inputs

__all__ = ["RemoteRunner", "serve"]

_START = "import sys; sys.path.insert(0, sys.argv[1]); from yolox.inference.backends.ipex_remote import serve; serve()"


class RemoteRunner:
    """The runner of an artifact whose library lives in another Python.

    Args:
        interpreter: The Python that has IPEX.
        folder: The artifact.
        manifest: Its manifest; ``settings`` may differ from the stored ones.

    Raises:
        ModelFileError: When the other process cannot load the artifact.
    """

    def __init__(self, interpreter: str, folder: Path, manifest: Manifest) -> None:
        self.settings = manifest.settings
        self.int8_share = manifest.int8_share
        self._interpreter, self._folder, self._manifest = interpreter, folder, manifest
        ours, theirs = socket.socketpair()
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        command = [interpreter, "-c", _START, str(source_root()), str(theirs.fileno()), str(folder)]
        with theirs:
            self._process = subprocess.Popen(
                [*command, json.dumps(asdict(manifest.settings))],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                env={**os.environ, "OMP_NUM_THREADS": str(manifest.settings.threads)},
            )
        self._connection = Connection(ours.detach())
        self._close = weakref.finalize(self, _end, self._connection, self._process, self._log)
        answer = self._answer()
        if "error" in answer:
            raise ModelFileError(f"'{folder}' cannot be loaded by {interpreter}: {answer['error']}")

    def __call__(self, *inputs: Array) -> Arrays:
        """Run one batch."""
        with suppress(OSError):  # when it has died, the answer says how
            _send(self._connection, [as_numpy(array) for array in inputs])
        answer = self._answer()
        if "error" in answer:
            raise YoloxError(f"the model failed in {self._interpreter}: {answer['error']}")
        return like_inputs(_receive_arrays(self._connection, answer), inputs)

    def candidates(self, batch_size: int, threads: int) -> Sequence[Settings]:
        """Return the artifact's settings alone; they were tuned when it was made."""
        return (self.settings,)

    def configured(self, settings: Settings) -> RemoteRunner:
        """Return a runner in a process of its own with other settings."""
        return RemoteRunner(self._interpreter, self._folder, replace(self._manifest, settings=settings))

    def save(self, folder: Path) -> Mapping[str, Any]:
        """Copy the model's files."""
        for file in self._folder.iterdir():
            if file.name != "manifest.json" and file.is_file() and folder.resolve() != self._folder.resolve():
                copyfile(file, folder / file.name)
        return dict(self._manifest.backend_data)

    def _answer(self) -> dict[str, Any]:
        try:
            header: dict[str, Any] = json.loads(self._connection.recv_bytes())
        except (EOFError, OSError) as error:
            code = self._process.wait()
            self._log.seek(0)
            lines = self._log.read().decode(errors="replace").strip().splitlines()
            reason = lines[-1] if lines else "it printed nothing"
            raise YoloxError(f"{self._interpreter} ended with code {code}: {reason}") from error
        return header


def serve() -> None:
    """Answer a `RemoteRunner`; arguments: source folder, descriptor, artifact, settings."""
    from yolox.cpu.allocator import keep_freed_memory
    from yolox.inference.artifacts.model import load_manifest
    from yolox.inference.backends.ipex import BACKEND

    connection = Connection(int(sys.argv[2]))
    keep_freed_memory()
    folder = Path(sys.argv[3])
    try:
        manifest = replace(load_manifest(folder), settings=Settings(**json.loads(sys.argv[4])))
        runner = BACKEND.load(folder, manifest)
        connection.send_bytes(json.dumps({}).encode())
    except Exception as error:  # noqa: BLE001 - whatever it is, the other side reports it
        connection.send_bytes(json.dumps({"error": str(error)}).encode())
        return
    while True:
        try:
            header = json.loads(connection.recv_bytes())
        except EOFError:
            return
        inputs = _receive_arrays(connection, header)
        try:
            outputs = [as_numpy(array) for array in runner(*inputs)]
        except Exception as error:  # noqa: BLE001 - as above
            connection.send_bytes(json.dumps({"error": f"{type(error).__name__}: {error}"}).encode())
            continue
        _send(connection, outputs)


def _send(connection: Connection, arrays: Sequence[np.ndarray[Any, Any]]) -> None:
    header = [[str(array.dtype), list(array.shape)] for array in arrays]
    connection.send_bytes(json.dumps({"arrays": header}).encode())
    for array in arrays:
        connection.send_bytes(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _receive_arrays(connection: Connection, header: Mapping[str, Any]) -> tuple[np.ndarray[Any, Any], ...]:
    arrays = []
    for dtype, shape in header["arrays"]:
        array = np.empty(shape, dtype)
        connection.recv_bytes_into(array.reshape(-1).view(np.uint8).data)
        arrays.append(array)
    return tuple(arrays)


def _end(connection: Connection, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    connection.close()
    log.close()
    with suppress(ProcessLookupError):
        process.kill()
    process.wait()
