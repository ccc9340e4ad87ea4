"""Files that are either whole or absent: written beside their place, then moved there in one step."""

from __future__ import annotations

import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from yolox.errors import YoloxError

# torch.save reports a full disk as a RuntimeError of its zip writer
_TORCH_WRITE_FAILURES = ("PytorchStreamWriter", "iostream error", "unexpected pos")

_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")  # what `_temporary` makes

__all__ = ["atomic_path", "cache_root", "make_output_dir", "remove_temporary_files", "write_text"]


def cache_root() -> Path:
    """Return the folder for things that can be made again: ``YOLOX_CACHE``, else the user's cache folder.

    A user without a home (a container's user id that has no entry) gets a private folder beside temporary files.

    Raises:
        YoloxError: When that folder belongs to somebody else.
    """
    explicit, base = os.environ.get("YOLOX_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if explicit:
        return Path(explicit).expanduser()
    if base:
        return Path(base) / "yolox"
    try:
        return Path.home() / ".cache" / "yolox"
    except RuntimeError:
        return _private_folder(Path(tempfile.gettempdir()) / f"yolox-{os.getuid()}")


def _private_folder(path: Path) -> Path:
    path.mkdir(mode=0o700, exist_ok=True)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise YoloxError(
            f"there is no home folder, and '{path}' can be written by others. Set YOLOX_CACHE to a folder of your own."
        )
    return path


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; on leaving, move it to ``path``, with file and folder flushed to the disk.

    On any failure ``path`` keeps its earlier content and the temporary file is removed.

    Raises:
        YoloxError: When the disk is full or the place cannot be written.
    """
    temporary = _temporary(path)
    try:
        yield temporary
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(mark in str(error) for mark in _TORCH_WRITE_FAILURES):
            raise
        reason = getattr(error, "strerror", None) or "the write ended early (is the disk full?)"
        raise YoloxError(f"cannot write '{path}': {reason}. Free some space or choose another folder.") from error
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _flush_folder(folder: Path) -> None:
    """Have the names in ``folder`` survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network file systems flush no folders
    finally:
        os.close(descriptor)


def remove_temporary_files(folder: Path) -> None:
    """Remove what killed processes left half written in ``folder``; call it only where nobody else writes."""
    for path in folder.iterdir():
        if _TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` in one step."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def make_output_dir(path: Path) -> Path:
    """Create ``path`` and its parents, prove that it can be written, and return it.

    Raises:
        YoloxError: When it cannot be created or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = _temporary(path / "write-test")
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise YoloxError(f"cannot write to folder '{path}': {error.strerror}. Choose another output folder.") from error
    return path
