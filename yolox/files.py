"""Files that are either whole or absent: written beside their place, then moved there in one step.

What a command reads is never what it writes: inputs are announced with `mark_inputs`, and every writer asks first.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from yolox.errors import UsageError, YoloxError

# torch.save reports a full disk as a RuntimeError of its zip writer
_TORCH_WRITE_FAILURES = ("PytorchStreamWriter", "iostream error", "unexpected pos")

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")  # what `_temporary` makes

_inputs: ContextVar[frozenset[Path]] = ContextVar("inputs", default=frozenset())
_input_siblings: ContextVar[frozenset[Path]] = ContextVar("input_siblings", default=frozenset())


def mark_inputs(*paths: str | os.PathLike[str] | None) -> None:
    """Announce files and folders that are read, for the rest of this context (a tool's run): nothing replaces them.

    Args:
        paths: Files, and folders whose present files are meant, sub-folders included; None is ignored.
    """
    _inputs.set(_inputs.get() | {Path(path).resolve() for path in paths if path is not None})


def mark_input_files(paths: Iterable[str | os.PathLike[str]]) -> None:
    """Announce files that are read, as many as there are, and protect all files that lie beside them.

    Only their folders are remembered. A folder among them is announced as `mark_inputs` does.
    """
    places: dict[str, Path] = {}
    for path in paths:
        text = os.fspath(path)
        try:
            kind = os.lstat(text).st_mode
        except (OSError, ValueError):  # it is gone, or its name is none
            kind = 0
        if stat.S_ISLNK(kind) or stat.S_ISDIR(kind):
            place = Path(text).resolve()
            if place.is_dir():
                mark_inputs(place)
            places.setdefault(str(place.parent), place.parent)
        elif (folder := os.path.dirname(text)) not in places:
            places[folder] = Path(folder or ".").resolve()
    _input_siblings.set(_input_siblings.get() | set(places.values()))


def refuse_inputs(*outputs: str | os.PathLike[str] | None) -> None:
    """Check that no output would replace an input; call it before any work is done. None is ignored.

    Raises:
        UsageError: When an output is a file that was announced, or lies in a folder that was and exists.
    """
    inputs = _inputs.get()
    for output in outputs:
        if output is None:
            continue
        resolved = Path(output).resolve()
        inside = not inputs.isdisjoint(resolved.parents) or resolved.parent in _input_siblings.get()
        if resolved in inputs or (inside and resolved.is_file()):
            raise UsageError(
                f"'{output}' is an input of this command, or lies beside one, and would be replaced. "
                "Give another place for the output."
            )


def check_outputs(*files: str | os.PathLike[str] | None, folder: str | os.PathLike[str] | None = None) -> None:
    """Check before any work is done that every output can be written and that none would replace an input.

    Args:
        files: Files to write later; None is ignored.
        folder: A folder to write files into later, or None.

    Raises:
        UsageError: When an output is an input of this command or the place of another output, or a folder stands where
            a file is to be written.
        YoloxError: When a place cannot be written.
    """
    refuse_inputs(*files, folder)
    places = [Path(output).resolve() for output in (*files, folder) if output is not None]
    for place in places:
        if places.count(place) > 1:
            raise UsageError(
                f"two outputs of this command would be written to '{place}'. Give each a place of its own."
            )
    for file in files:
        if file is not None:
            if Path(file).is_dir():
                raise UsageError(f"'{file}' is a folder; expected the name of a file to write.")
            _check_writable(Path(file).parent)
    if folder is not None:
        _check_writable(Path(folder))


def _check_writable(folder: Path) -> None:
    """Prove that files can be written into ``folder``, or into what exists of the way to it."""
    existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise YoloxError(
            f"cannot write to folder '{folder}': {error.strerror}. Choose another output folder."
        ) from error


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
        UsageError: When ``path`` is an input of this command.
    """
    refuse_inputs(path)
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


def describe_failed_write(error: BaseException | None) -> str | None:
    """Return what to tell of an error that a full or read-only disk has caused, or None where it is another one.

    Args:
        error: As it arrived, possibly raised from others that are looked at as well.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            named = error.filename is not None
            place, where = (f" '{error.filename}'", "") if named else ("", _least_space())
            return f"cannot write{place}: {error.strerror}.{where} Free some space or choose another folder."
        error = error.__cause__ or error.__context__
    return None


def _least_space() -> str:
    """Say which of the folders that are written to has the least space, for errors that name no file."""
    folders = {"TMPDIR": Path(tempfile.gettempdir()), "YOLOX_CACHE": cache_root(), "the current folder": Path()}
    free: dict[str, int] = {}
    for name, folder in folders.items():
        with suppress(OSError):  # the current folder may have been removed
            existing = next(place for place in (folder, *folder.parents) if place.exists())
            free[f"{name} ('{folder.absolute()}')"] = shutil.disk_usage(existing).free
    if not free:
        return ""
    name = min(free, key=lambda place: free[place])
    return f" {name} has the least space left, {free[name] / 2**20:.1f} MB."


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


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
