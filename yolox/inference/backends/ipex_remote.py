"""Runs an IPEX artifact from a process that has no IPEX, in a child process of a Python that has.

Inputs and outputs travel through a socket, which costs some milliseconds for each hundred megabytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from shutil import copyfile
from typing import Any

from yolox.errors import YoloxError
from yolox.inference.artifacts.manifest import Manifest
from yolox.inference.backends.base import Array, Arrays, Settings, as_numpy, like_inputs
from yolox.inference.runner_process import Batch, Failed, await_loaded, start_runner
from yolox.processes.start import ProcessFailure


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
        self._process = start_runner(folder, manifest.settings, interpreter)
        await_loaded(self._process, folder, interpreter)

    def __call__(self, *inputs: Array) -> Arrays:
        """Run one batch.

        Raises:
            YoloxError: When the model fails, or its process has ended.
        """
        self._process.send(Batch(0, tuple(as_numpy(array) for array in inputs)))
        try:
            answer = self._process.receive()
        except ProcessFailure as failure:
            raise YoloxError(f"{self._interpreter} {failure.reason}") from failure
        if isinstance(answer, Failed):
            raise YoloxError(f"the model failed in {self._interpreter}: {answer.reason}")
        return like_inputs(answer.arrays, inputs)

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
