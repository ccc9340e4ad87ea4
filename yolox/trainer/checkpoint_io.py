"""Files of a trainer: checkpoints that are whole or absent, restarts from the last one, plain weights of a module."""

from __future__ import annotations

import copy
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import CheckpointIO
from torch import nn

from yolox.errors import ModelFileError, UsageError
from yolox.files import atomic_path, make_output_dir, write_text
from yolox.temporary_folders import TemporaryFolder
from yolox.torch_files import read_torch_file
from yolox.trainer.launchers.base import RankError

_WEIGHTS, _META, _KIND = "saved_weight.pt", "meta.json", "yolox-trainer-weights"
_log = logging.getLogger(__name__)


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


def run_with_restarts(
    fit: Callable[[str | Path | None], None],
    checkpoint_io: AtomicCheckpointIO,
    ckpt_path: str | Path | None,
    max_restarts: int,
) -> None:
    """Call ``fit`` until it succeeds, at most ``max_restarts`` times again.

    Only failures of a process are tried again; a mistake of the user would come back.

    Args:
        fit: Trains in worker processes from a checkpoint (None: from the beginning).
        checkpoint_io: Its journal, written by the workers, says which checkpoint is the last.
        ckpt_path: Where the first run starts.
        max_restarts: How often to start again.

    Raises:
        RankError: When the last attempt failed as well.
    """
    folder = TemporaryFolder("journal")
    checkpoint_io.journal = folder.path / "checkpoints.txt"
    try:
        for attempt in range(max_restarts + 1):
            try:
                return fit(ckpt_path)
            except RankError as error:
                if attempt == max_restarts:
                    raise
                ckpt_path = _last_written(checkpoint_io.journal) or ckpt_path
                _log.warning(
                    "%s\nrestart %d of %d, from %s", error, attempt + 1, max_restarts, ckpt_path or "the beginning"
                )
    finally:
        checkpoint_io.journal = None
        folder.remove()


def _last_written(journal: Path) -> Path | None:
    lines = journal.read_text(encoding="utf-8").splitlines() if journal.exists() else []
    return next((Path(line) for line in reversed(lines) if Path(line).is_file()), None)


def save_module(model: nn.Module, path: str | Path) -> None:
    """Write the weights of ``model`` and a description of them into the folder ``path``.

    Raises:
        UsageError: When ``model`` is no module.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"Trainer.save got {type(model).__name__}; expected a torch.nn.Module.")
    folder = make_output_dir(Path(path))
    with atomic_path(folder / _WEIGHTS) as temporary:
        torch.save(model.state_dict(), temporary)
    meta = {"kind": _KIND, "format": 1, "class": f"{type(model).__module__}.{type(model).__qualname__}"}
    write_text(folder / _META, json.dumps(meta, indent=2) + "\n")


def load_module(path: str | Path, model: nn.Module | None, input_sample: Any, inplace: bool, device: Any) -> nn.Module:
    """Return a module with the weights of the folder ``path``.

    Args:
        path: Written by `save_module`.
        model: A module of the same structure; weights alone do not make one.
        input_sample: Not needed for weights; said so in the log.
        inplace: Fill ``model`` itself instead of a copy.
        device: Where to put it; None for the CPU.

    Raises:
        UsageError: When ``model`` is missing.
        ModelFileError: When the folder holds no such weights, or they do not fit.
    """
    folder = Path(path)
    if not (folder / _WEIGHTS).is_file():
        raise ModelFileError(f"'{folder}' has no file {_WEIGHTS}; expected a folder written by Trainer.save.")
    if model is None:
        raise UsageError("Trainer.load got no model; weights need the module that they belong to: load(path, model).")
    if input_sample is not None:
        _log.info("Trainer.load: input_sample is not needed for plain weights")
    state = read_torch_file(folder / _WEIGHTS)
    if not isinstance(state, dict):
        raise ModelFileError(f"'{folder / _WEIGHTS}' holds {type(state).__name__}; expected weights by name.")
    target = model if inplace else copy.deepcopy(model)
    try:
        target.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ModelFileError(f"the weights in '{folder}' do not fit {type(model).__name__}: {error}") from error
    return target.to(device) if device is not None else target
