"""Objects that cannot be sent are named; long folder names and absent homes are no obstacle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from yolox.errors import UsageError, YoloxError
from yolox.files import cache_root
from yolox.processes.pickling import dumps
from yolox.processes.start import short_temporary_folder
from yolox.temporary_folders import TemporaryFolder

LOCK = threading.Lock()


class Data:
    def __init__(self, depth: int) -> None:
        self.name = "data"
        self.again = self
        self.parts: Any = {"inner": [1, Data(depth - 1)]} if depth else threading.Lock()


def uses_a_lock() -> Any:
    return LOCK


@pytest.mark.parametrize(
    ("value", "part"),
    [
        (Data(0), r"Data.parts, of type _thread.lock,"),
        (Data(2), r"Data.parts, of type _thread.lock,"),
        ({"a": [0, LOCK]}, r"dict\['a'\]\[1\], of type _thread.lock,"),
        (partial(print, LOCK), r"\(arguments\)\[0\], of type _thread.lock,"),
        (Data(1).__init__, r"Data.parts, of type _thread.lock,"),  # type: ignore[misc]
        ((number for number in range(3)), "the run cannot be sent to another process .*generator"),
    ],
)
def test_the_part_that_cannot_be_pickled_is_named(value: object, part: str) -> None:
    with pytest.raises(UsageError, match=part) as caught:
        dumps(value, "the run")
    assert "__getstate__" in str(caught.value)


def test_what_a_function_uses_is_named() -> None:
    lock = threading.Lock()
    with pytest.raises(UsageError, match=r"function\(lock\), of type _thread.lock,"):
        dumps(lambda: lock, "the run")


SOCKETS = """
import multiprocessing as mp, os, sys
from multiprocessing import util
from yolox.processes.start import choose_socket_folder
if __name__ == "__main__":
    choose_socket_folder()
    context = mp.get_context("forkserver")
    process = context.Process(target=print, args=("it runs in", util.get_temp_dir()))
    process.start()
    process.join()
    os.kill(os.getpid(), int(sys.argv[1]))
"""


def folder_of_sockets(folder: Path, ended_by: int = 0) -> Path:
    """Return where a script that starts a process had its sockets, TMPDIR being ``folder``."""
    script = folder.parent / "script.py"
    script.write_text(SOCKETS)
    answer = subprocess.run(
        [sys.executable, str(script), str(int(ended_by))],
        env={**os.environ, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert answer.returncode == -ended_by, answer.stderr
    assert answer.stdout.startswith("it runs in ")
    assert answer.stderr == ""
    return Path(answer.stdout.split()[-1])


def test_workers_start_below_a_temporary_folder_with_a_long_name(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    assert not folder_of_sockets(folder).exists()
    assert list(folder.iterdir()) == []


def test_the_next_process_removes_the_sockets_of_a_killed_one() -> None:
    with TemporaryFolder("test") as above:  # a short name, in which nobody else looks for what was left
        folder = above / "tmp"
        folder.mkdir()
        killed = folder_of_sockets(folder, signal.SIGKILL)
        assert killed.is_dir()
        assert killed.parent.parent == folder
        folder_of_sockets(folder)
        assert list(folder.iterdir()) == []


def test_a_short_folder_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/short")
    assert short_temporary_folder() == Path("/short")


def test_without_a_short_folder_the_message_names_tmpdir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/" + "x" * 120)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UsageError, match=r"TMPDIR is '/xxx.*, 121 bytes long"):
        short_temporary_folder()


def test_a_user_without_a_home_has_a_private_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("YOLOX_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = cache_root()
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    with pytest.raises(YoloxError, match=r"can be written by others. Set YOLOX_CACHE"):
        cache_root()
