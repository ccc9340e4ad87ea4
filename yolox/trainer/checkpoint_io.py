"""Checkpoint files that are whole or absent, and are read without executing anything."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import CheckpointIO

from yolox.errors import ModelFileError
from yolox.files import atomic_path
from yolox.torch_files import read_torch_file


def _place_copy(file: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        try:
            os.link(file, temporary)
        except OSError:
            shutil.copyfile(file, temporary)


class AtomicCheckpointIO(CheckpointIO):
    """Writes beside the place, then moves the file there in one step; remembers what it wrote last.

    Args:
        journal: A file that gets the path of each checkpoint written, one a line, for a process that watches.
    """

    def __init__(self, journal: Path | None = None) -> None:
        self.journal = journal
        self.last_written: Path | None = None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: object | None = None
    ) -> None:
        """Write a checkpoint.

        Copies are in place before the checkpoint itself is, so whoever reads in it that a copy exists finds the copy,
        and a run that is killed in between writes the same copies again when it goes on.

        Args:
            checkpoint: What to write.
            path: The file.
            storage_options: None, or ``{"copies": [paths]}``: further files with the same content, in the same folder.

        Raises:
            TypeError: When other storage options are given; there is only the local disk.
        """
        options = {} if storage_options is None else storage_options
        if not isinstance(options, dict) or options.keys() - {"copies"}:
            raise TypeError(f"storage_options {options!r} are for remote storage; expected None or 'copies'.")
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(target) as temporary:
            torch.save(checkpoint, temporary)
            for copy in options.get("copies", ()):
                _place_copy(temporary, copy)
        self.last_written = target.resolve()
        if self.journal is not None:
            with self.journal.open("a", encoding="utf-8") as lines:
                lines.write(f"{self.last_written}\n")

    def load_checkpoint(
        self, path: str | Path, map_location: Callable[..., Any] | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint; code in it is refused unless ``weights_only`` is False.

        Raises:
            ModelFileError: When the file is missing, damaged, or holds code to execute.
        """
        where = map_location or "cpu"
        if weights_only is False:
            content = torch.load(
                path, map_location=where, weights_only=False
            )  # the caller's word: the file may run code
        else:
            content = read_torch_file(path, where)
        if not isinstance(content, dict):
            raise ModelFileError(f"'{path}' holds {type(content).__name__}; expected a checkpoint, a dictionary.")
        return content

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint file if it is there."""
        Path(path).unlink(missing_ok=True)
