"""Folders for temporary files that are removed even where the process that made them could not do it.

A folder holds a locked file as long as its process lives, and the system releases the lock of a process that dies,
however it dies. Who makes the next folder in the same place removes those whose locks are free.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO

_LOCK = ".lock"
_PREFIX = "yolox-"
_COMPILER = "torchinductor_*"


class TemporaryFolder:
    """A private folder that goes with this object, with this process, or with the next process that makes one here.

    Args:
        purpose: Part of its name.
        place: Where to make it; by default in the folder for temporary files.
        at_exit: Whether it goes when the process ends in order. Without, the caller removes it.

    Attributes:
        path: The folder, readable by this user alone.
    """

    def __init__(self, purpose: str, place: Path | None = None, *, at_exit: bool = True) -> None:
        place = Path(tempfile.gettempdir()) if place is None else place
        remove_abandoned(place)
        self.path, lock = _make(purpose, place)
        self._finalizer = weakref.finalize(self, _remove, self.path, lock, os.getpid())
        self._finalizer.atexit = at_exit

    def remove(self) -> None:
        """Remove the folder and all that is in it; calling it again does no harm."""
        found = self._finalizer.detach()
        if found is not None:
            _, function, arguments, _ = found
            function(*arguments)  # not by a call of the finalizer, which does nothing in exit handlers

    def __enter__(self) -> Path:
        return self.path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()


def remove_abandoned(place: Path) -> None:
    """Remove the folders of this user in ``place`` whose processes have died."""
    try:
        with os.scandir(place) as entries:
            found = [Path(entry) for entry in entries if entry.name.startswith(_PREFIX) and _is_own_folder(entry)]
    except OSError:  # it may be written to but not be listed
        return
    for path in found:
        lock = _lock_of_the_dead(path / _LOCK)
        if lock is not None:
            with lock:
                shutil.rmtree(path, ignore_errors=True)


@contextmanager
def without_empty_compiler_folders(place: Path) -> Iterator[None]:
    """Remove, in the end, empty folders of PyTorch's compiler that came meanwhile: it makes one where it is imported.

    Args:
        place: The folder for temporary files.
    """
    known = set(place.glob(_COMPILER))
    try:
        yield
    finally:
        for folder in set(place.glob(_COMPILER)) - known:
            with suppress(OSError):  # it is not empty, or another user's
                folder.rmdir()


def _is_own_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_uid == os.getuid()
    except OSError:
        return False


def _make(purpose: str, place: Path) -> tuple[Path, IO[bytes] | None]:
    """Return a new folder and its locked file; None where the file system has no locks, and nobody else removes it."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{purpose}-", dir=place))
        lock = (path / _LOCK).open("xb")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            lock.close()
            return path, None
        if _is_still_there(path / _LOCK, lock):
            return path, lock
        lock.close()  # before it was locked, another process took the folder for an abandoned one


def _lock_of_the_dead(path: Path) -> IO[bytes] | None:
    """Return the file, locked, or None where there is none or a process holds it."""
    try:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_NOFOLLOW), "r+b")
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def _is_still_there(path: Path, file: IO[bytes]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except OSError:
        return False


def _remove(path: Path, lock: IO[bytes] | None, process: int) -> None:
    if os.getpid() == process:  # a forked process has a copy of the object
        shutil.rmtree(path, ignore_errors=True)
    if lock is not None:
        lock.close()
