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
with open_run_folder(Path(sys.argv[1]), Path(sys.argv[1], "latest_ckpt.pth")):
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
    with open_run_folder(run) as checkpoint:
        assert checkpoint is None
        (run / "latest_ckpt.pth").write_text("new")
    assert (run.with_name("run.old1") / "latest_ckpt.pth").read_text() == "earlier"
    assert (run / "latest_ckpt.pth").read_text() == "new"
    with open_run_folder(run):
        (run / "latest_ckpt.pth").write_text("newest")
    assert (run.with_name("run.old2") / "latest_ckpt.pth").read_text() == "new"


def test_to_resume_from_latest_goes_on_in_the_folder(run: Path) -> None:
    with open_run_folder(run, run / "latest_ckpt.pth") as checkpoint:
        assert checkpoint == run / "latest_ckpt.pth"
    assert names(run.parent) == ["run"]


def test_to_resume_from_an_older_checkpoint_keeps_what_came_after_it(run: Path, tmp_path: Path) -> None:
    (run / "epoch_3_ckpt.pth").write_text("third")
    with open_run_folder(run, run / "epoch_3_ckpt.pth") as checkpoint:
        assert checkpoint is not None
        assert checkpoint.read_text() == "third"
        (run / "latest_ckpt.pth").write_text("new")
    assert (run.with_name("run.old1") / "latest_ckpt.pth").read_text() == "earlier"
    (tmp_path / "elsewhere.pth").write_text("x")
    with open_run_folder(run, tmp_path / "elsewhere.pth") as checkpoint:
        assert checkpoint == tmp_path / "elsewhere.pth"


@pytest.mark.parametrize("file", ["best_ckpt.pth", "results.csv", "epoch_3_ckpt.pth"])
def test_any_file_that_would_be_replaced_makes_it_an_earlier_run(file: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / file).write_text("earlier")
    with open_run_folder(tmp_path / "run"):
        assert (tmp_path / "run.old1" / file).read_text() == "earlier"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_start_that_fails_gives_the_folder_back(run: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), open_run_folder(run):
        (run / "half a log").write_text("x")
        raise error
    assert names(run.parent) == ["run"]
    assert (run / "latest_ckpt.pth").read_text() == "earlier"


def test_a_run_that_fails_after_its_first_checkpoint_keeps_the_folder(run: Path) -> None:
    with pytest.raises(RuntimeError), open_run_folder(run):
        (run / "latest_ckpt.pth").write_text("new")
        raise RuntimeError
    assert names(run.parent) == ["run", "run.old1"]
    assert (run / "latest_ckpt.pth").read_text() == "new"


def test_a_first_run_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), open_run_folder(tmp_path / "run"):
        raise RuntimeError
    assert names(tmp_path) == []


def test_a_second_run_is_refused_until_the_first_is_dead(run: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        for resume_from in (run / "latest_ckpt.pth", None):
            with (
                pytest.raises(UsageError, match=rf"process {holder.pid} on .*-expn"),
                open_run_folder(run, resume_from),
            ):
                pass
        holder.kill()
    with open_run_folder(run, run / "latest_ckpt.pth"):
        assert names(run.parent) == ["run"]


def test_what_killed_writers_left_is_removed_and_nothing_else(run: Path) -> None:
    (run / ".latest_ckpt.pth.123.tmp").write_text("half")
    (run / "mine.tmp").write_text("kept")
    (run / ".hidden").write_text("kept")
    with open_run_folder(run, run / "latest_ckpt.pth"):
        assert names(run) == [".hidden", "latest_ckpt.pth", "mine.tmp"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(YoloxError, match="Choose another output folder"),
        open_run_folder(tmp_path / "file" / "run"),
    ):
        pass
