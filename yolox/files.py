"""Files that are either whole or absent: written beside their place, then moved there in one step."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from yolox.errors import YoloxError

# torch.save reports a full disk as a RuntimeError of its zip writer
_TORCH_WRITE_FAILURES = ("PytorchStreamWriter", "iostream error", "unexpected pos")

__all__ = ["atomic_path", "cache_root", "make_output_dir", "write_text"]


def cache_root() -> Path:
    """Return the folder for things that can be made again: ``YOLOX_CACHE``, else the user's cache folder."""
    explicit, base = os.environ.get("YOLOX_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if explicit:
        return Path(explicit).expanduser()
    return (Path(base) if base else Path.home() / ".cache") / "yolox"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; on leaving, flush it to disk and move it to ``path``.

    On any failure ``path`` keeps its earlier content and the temporary file is removed.

    Raises:
        YoloxError: When the disk is full or the place cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(mark in str(error) for mark in _TORCH_WRITE_FAILURES):
            raise
        reason = getattr(error, "strerror", None) or "the write ended early (is the disk full?)"
        raise YoloxError(f"cannot write '{path}': {reason}. Free some space or choose another folder.") from error
    finally:
        temporary.unlink(missing_ok=True)


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
        probe = path / f".write-test.{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise YoloxError(f"cannot write to folder '{path}': {error.strerror}. Choose another output folder.") from error
    return path
