"""Files are whole or absent."""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path

import pytest
import torch

from yolox.errors import UsageError, YoloxError
from yolox.files import atomic_path, check_outputs, describe_failed_write, make_output_dir, write_text
from yolox.tables import markdown_table, text_table


def test_failure_keeps_the_earlier_file(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old")
    with pytest.raises(ZeroDivisionError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_full_disk_is_named(tmp_path: Path) -> None:
    target = tmp_path / "a.pth"
    with pytest.raises(YoloxError, match="cannot write"), atomic_path(target) as temporary:
        temporary.symlink_to("/dev/full")
        torch.save({"a": torch.zeros(10)}, temporary)
    assert not target.exists()


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(YoloxError, match="Choose another output folder"):
        make_output_dir(tmp_path / "file" / "out")


def test_outputs_that_cannot_be_written_are_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    check_outputs(tmp_path / "new" / "deep" / "a.json", tmp_path / "file", None, folder=tmp_path / "models")
    assert [item.name for item in tmp_path.iterdir()] == ["file"]
    for place in (tmp_path / "file" / "a.json", Path("/proc/none/a.json")):
        with pytest.raises(YoloxError, match="Choose another output folder"):
            check_outputs(place)
        with pytest.raises(YoloxError, match="Choose another output folder"):
            check_outputs(folder=place.parent)
    with pytest.raises(YoloxError, match="is a folder; expected the name of a file"):
        check_outputs(tmp_path)


def test_two_outputs_have_two_places(tmp_path: Path) -> None:
    """``eval --json a.json --detections a.json`` wrote one over the other."""
    (tmp_path / "link").symlink_to(tmp_path / "a.json")
    for one, other in (("a.json", "a.json"), ("a.json", "x/../a.json"), ("a.json", "link")):
        with pytest.raises(UsageError, match="two outputs of this command"):
            check_outputs(tmp_path / one, None, tmp_path / other)
    with pytest.raises(UsageError, match="two outputs of this command"):
        check_outputs(tmp_path / "a.json", folder=tmp_path / "a.json")
    check_outputs(tmp_path / "a.json", tmp_path / "b.json", None, None)


def test_a_write_flushes_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[bool] = []
    flush = os.fsync

    def spy(descriptor: int) -> None:
        flushed.append(stat.S_ISDIR(os.fstat(descriptor).st_mode))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    write_text(tmp_path / "a.txt", "x")
    assert flushed == [False, True]


def test_tables() -> None:
    rows = [["a", "1"], ["bbb", "22"]]
    assert text_table(["name", "n"], rows).splitlines()[1:5:2] == ["name   n", "a      1"]
    assert markdown_table(["name", "n"], rows).splitlines()[1] == "| :--- | ---: |"


def test_a_failed_write_without_a_name_tells_where_space_is_scarce(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YOLOX_CACHE", str(tmp_path / "none" / "yet"))
    told = describe_failed_write(OSError(errno.ENOSPC, "No space left on device"))
    assert told is not None
    assert re.fullmatch(
        r"cannot write: No space left on device\. (TMPDIR|YOLOX_CACHE|the current folder) \('.+'\) has the least space "
        r"left, [0-9.]+ MB\. Free some space or choose another folder\.",
        told,
    )
