"""The folder of a run: one process at a time, and nothing of an earlier run is lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from yolox.errors import UsageError, YoloxError
from yolox.recipe.run_folder import open_run_folder

HOLD = """
import sys, time
from pathlib import Path
from yolox.recipe.run_folder import open_run_folder
with open_run_folder(Path(sys.argv[1]), keep=True):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "latest_ckpt.pth").write_text("earlier")
    return folder


def names(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir() if not item.name.endswith(".lock"))


def test_an_earlier_run_is_moved_aside(run: Path) -> None:
    with open_run_folder(run, keep=False) as earlier:
        (run / "latest_ckpt.pth").write_text("new")
    assert earlier == run.with_name("run.old1")
    assert (earlier / "latest_ckpt.pth").read_text() == "earlier"
    assert (run / "latest_ckpt.pth").read_text() == "new"
    with open_run_folder(run, keep=False) as earlier:
        assert earlier == run.with_name("run.old2")
        (run / "latest_ckpt.pth").write_text("newest")


@pytest.mark.parametrize("file", ["best_ckpt.pth", "results.csv", "epoch_3_ckpt.pth"])
def test_any_file_that_would_be_replaced_makes_it_an_earlier_run(file: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / file).write_text("earlier")
    with open_run_folder(tmp_path / "run", keep=False) as earlier:
        assert earlier is not None
        assert (earlier / file).read_text() == "earlier"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_start_that_fails_gives_the_folder_back(run: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), open_run_folder(run, keep=False):
        (run / "half a log").write_text("x")
        raise error
    assert names(run.parent) == ["run"]
    assert (run / "latest_ckpt.pth").read_text() == "earlier"


def test_a_run_that_fails_after_its_first_checkpoint_keeps_the_folder(run: Path) -> None:
    with pytest.raises(RuntimeError), open_run_folder(run, keep=False):
        (run / "latest_ckpt.pth").write_text("new")
        raise RuntimeError
    assert names(run.parent) == ["run", "run.old1"]
    assert (run / "latest_ckpt.pth").read_text() == "new"


def test_a_first_run_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), open_run_folder(tmp_path / "run", keep=False):
        raise RuntimeError
    assert names(tmp_path) == []


def test_a_second_run_is_refused_until_the_first_is_dead(run: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        for keep in (True, False):
            with pytest.raises(UsageError, match=rf"process {holder.pid} on .*-expn"), open_run_folder(run, keep=keep):
                pass
        holder.kill()
    with open_run_folder(run, keep=True):
        assert names(run.parent) == ["run"]


def test_what_killed_writers_left_is_removed_and_nothing_else(run: Path) -> None:
    (run / ".latest_ckpt.pth.123.tmp").write_text("half")
    (run / "mine.tmp").write_text("kept")
    (run / ".hidden").write_text("kept")
    with open_run_folder(run, keep=True) as earlier:
        assert earlier is None
        assert names(run) == [".hidden", "latest_ckpt.pth", "mine.tmp"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(YoloxError, match="Choose another output folder"),
        open_run_folder(tmp_path / "file" / "run", keep=False),
    ):
        pass
