"""Temporary folders go with their object, with their process, or with the next process."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from yolox.temporary_folders import TemporaryFolder, remove_abandoned, without_empty_compiler_folders

SCRIPT = """
import os, sys
from pathlib import Path
from yolox.temporary_folders import TemporaryFolder
folder = TemporaryFolder("script", Path(sys.argv[1]))
(folder.path / "large").write_bytes(b"content")
print(folder.path, flush=True)
sys.stdin.readline()
os.kill(os.getpid(), int(sys.argv[2]))
"""


def started(place: Path, ended_by: int = 0) -> subprocess.Popen[str]:
    """Start a process that makes a folder and waits; it ends by the signal when its input ends."""
    words = [sys.executable, "-c", SCRIPT, str(place), str(int(ended_by))]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_folder_goes_with_its_block_its_object_and_its_process(tmp_path: Path) -> None:
    with TemporaryFolder("block", tmp_path) as path:
        assert path.name.startswith("yolox-block-")
        assert path.stat().st_mode & 0o777 == 0o700
        (path / "sub").mkdir()
    folder = TemporaryFolder("object", tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == [folder.path.name]
    del folder
    assert list(tmp_path.iterdir()) == []
    with started(tmp_path) as process:
        process.communicate("\n")
    assert process.returncode == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_the_next_folder_removes_what_a_killed_process_left(tmp_path: Path, signum: int) -> None:
    with started(tmp_path, signum) as process:
        process.communicate("\n")
    assert process.returncode == -signum
    left = list(tmp_path.glob("yolox-script-*/large"))
    assert len(left) == 1
    with TemporaryFolder("next", tmp_path) as path:
        assert list(tmp_path.iterdir()) == [path]


def test_the_folders_of_living_processes_and_of_others_stay(tmp_path: Path) -> None:
    own = TemporaryFolder("own", tmp_path)
    of_another = tmp_path / "yolox-of-another-program"
    of_another.mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / ".lock").touch()
    (tmp_path / "yolox-link").symlink_to(elsewhere)
    with started(tmp_path) as process:
        assert process.stdout is not None
        living = Path(process.stdout.readline().strip())
        remove_abandoned(tmp_path)
        assert own.path.is_dir()
        assert (living / "large").is_file()
        assert of_another.is_dir()
        assert (elsewhere / ".lock").exists()
        process.communicate("\n")
    assert not living.exists()


FORK = """
import os, sys
from pathlib import Path
from yolox.temporary_folders import TemporaryFolder
folder = TemporaryFolder("parent", Path(sys.argv[1]))
pid = os.fork()
if pid == 0:
    folder.remove()
    os._exit(0)
os.waitpid(pid, 0)
print(folder.path.is_dir())
folder.remove()
folder.remove()
print(folder.path.is_dir())
"""


def test_a_forked_process_leaves_the_folder_to_its_parent(tmp_path: Path) -> None:
    answer = subprocess.run([sys.executable, "-c", FORK, str(tmp_path)], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["True", "False"]


LATE = """
import atexit, sys
from pathlib import Path
from yolox.temporary_folders import TemporaryFolder
folders = []
atexit.register(lambda: folders[0].remove())
folders.append(TemporaryFolder("late", Path(sys.argv[1]), at_exit=False))
"""


def test_an_exit_handler_can_remove_a_folder(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", LATE, str(tmp_path)], check=True)
    assert list(tmp_path.iterdir()) == []


def test_folders_of_the_compiler_go_where_they_are_new_and_empty(tmp_path: Path) -> None:
    earlier, empty, used = (tmp_path / f"torchinductor_{name}" for name in ("earlier", "empty", "used"))
    earlier.mkdir()
    with without_empty_compiler_folders(tmp_path):
        empty.mkdir()
        (used / "code").mkdir(parents=True)
    assert sorted(tmp_path.iterdir()) == [earlier, used]
