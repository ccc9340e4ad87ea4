"""The folder of one run: held by one process at a time, and given back to the earlier run when a start fails."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO

from yolox.errors import UsageError, YoloxError
from yolox.files import make_output_dir, remove_temporary_files
from yolox.recipe.callbacks import BEST, LATEST

_log = logging.getLogger(__name__)


def holds_run(folder: Path) -> bool:
    """Return whether a run has left files in ``folder`` that a new one would replace."""
    return any((folder / name).exists() for name in (LATEST, BEST, "results.csv")) or any(folder.glob("epoch_*.pth"))


@contextmanager
def open_run_folder(folder: Path, resume_from: Path | None = None) -> Iterator[Path | None]:
    """Hold ``folder`` for a run as long as the context lasts; give the place of the checkpoint to go on from.

    Enter it when nothing is left that could refuse the run. Files of an earlier run are moved to ``NAME.old1``, or the
    next free number, unless the run goes on from their ``latest``. When the run ends with an exception before it has
    written a checkpoint, they are moved back. What dead writers left half written is removed.

    Args:
        folder: The folder; it is created where it is missing.
        resume_from: The checkpoint to go on from; it is found again where it is moved with an earlier run.

    Raises:
        UsageError: When another process holds the folder.
        YoloxError: When the folder cannot be written.
    """
    make_output_dir(folder.parent)
    with _lock(folder):
        goes_on = resume_from is not None and resume_from.resolve() == (folder / LATEST).resolve()
        aside = None if goes_on or not holds_run(folder) else _set_aside(folder)
        existed = folder.exists()
        try:
            make_output_dir(folder)
            remove_temporary_files(folder)
            if aside is not None and resume_from is not None and not resume_from.exists():
                yield aside / resume_from.name
            else:
                yield resume_from
        except BaseException:
            if aside is not None and not (folder / LATEST).exists():
                shutil.rmtree(folder, ignore_errors=True)
                aside.rename(folder)
                _log.warning("this run ended before its first checkpoint; the earlier run is in '%s' again", folder)
            elif not existed:
                with suppress(OSError):  # it stays where it holds anything
                    folder.rmdir()
            raise


def _set_aside(folder: Path) -> Path:
    number = 1
    while folder.with_name(f"{folder.name}.old{number}").exists():
        number += 1
    aside = folder.with_name(f"{folder.name}.old{number}")
    try:
        folder.rename(aside)
    except OSError as error:
        raise YoloxError(f"cannot move the earlier run in '{folder}' aside: {error.strerror}. Use -expn.") from error
    _log.warning("an earlier run was in '%s'; it is now in '%s' (--resume would have gone on with it)", folder, aside)
    return aside


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Lock ``.NAME.lock`` beside the folder; the system releases the lock of a process that dies, however it dies."""
    path = folder.with_name(f".{folder.name}.lock")
    try:
        handle = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise YoloxError(
            f"cannot write '{path}': {error.strerror}. Choose another output folder with --output_dir."
        ) from error
    with handle:
        _acquire(handle, folder)
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {socket.gethostname()} since {datetime.now():%Y-%m-%d %H:%M:%S}")
        handle.flush()
        yield


def _acquire(handle: IO[str], folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        handle.seek(0)
        owner = handle.read(200) or "another process"
        raise UsageError(
            f"another run writes to '{folder}' ({owner}). Wait for its end, stop it, or take another name: -expn."
        ) from error
    except OSError as error:  # a file system without locks
        _log.warning("'%s' cannot be locked (%s): start no second run there", folder, error.strerror)
