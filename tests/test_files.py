"""Files are whole or absent."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from yolox.errors import YoloxError
from yolox.files import atomic_path, make_output_dir, write_text
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


def test_tables() -> None:
    rows = [["a", "1"], ["bbb", "22"]]
    assert text_table(["name", "n"], rows).splitlines()[1:5:2] == ["name   n", "a      1"]
    assert markdown_table(["name", "n"], rows).splitlines()[1] == "| :--- | ---: |"
