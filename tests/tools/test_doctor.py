"""The doctor finds each of many planted faults, under its code, and nothing in clean data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from planted_faults import CLEAN, FAULTS, blank, clean_coco, label_file, rows

from yolox.tools.doctor import main


def examine(root: Path, *options: str) -> tuple[int, dict[str, Any]]:
    out = root.parent / "findings.json"
    code = main([str(root), "--json", str(out), "--output_dir", str(root.parent / "drawn"), *options])
    return code, json.loads(out.read_text())


@pytest.mark.parametrize("form", CLEAN)
def test_nothing_is_found_in_clean_data(tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str) -> None:
    CLEAN[form](tmp_path / "data")
    code, facts = examine(tmp_path / "data", "--strict")
    assert code == 0
    assert facts["findings"] == []
    assert {name: split["images"] for name, split in facts["splits"].items()} == {"train": 12, "val": 6}
    assert facts["splits"]["train"]["boxes"] == {"red": 6, "blue": 6}
    assert "nothing wrong was found" in capsys.readouterr().out
    assert not (tmp_path / "drawn").exists()


@pytest.mark.parametrize("fault", FAULTS)
def test_each_planted_fault_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str) -> None:
    form, severity, code, plant = FAULTS[fault]
    root = tmp_path / "data"
    CLEAN[form](root)
    plant(root)
    exit_code, facts = examine(root)
    found = [(finding["severity"], finding["code"]) for finding in facts["findings"]]
    assert (severity, code) in found
    assert exit_code == (3 if "error" in (level for level, _ in found) else 0)
    printed = capsys.readouterr().out
    assert code in printed
    assert "\x1b" not in printed


def test_the_worst_images_are_drawn_with_their_boxes(tmp_path: Path) -> None:
    root = tmp_path / "data"
    clean_coco(root)
    rows(lambda row: row.update(bbox=[60, 40, 60, 60]))(root)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert examine(root)[0] == 0
    (drawn,) = (tmp_path / "drawn").iterdir()
    assert drawn.name == "01_boxes-outside_001.jpg"
    picture, plain = cv2.imread(str(drawn)), cv2.imread(str(root / "train2017" / "001.png"))
    assert picture.shape == plain.shape
    assert np.abs(picture.astype(int) - plain).max() > 100
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_warnings_count_when_asked_and_json_alone_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    clean_coco(root)
    blank(root)
    options = ["--output_dir", str(tmp_path / "drawn"), "--json", "-"]
    assert main([str(root), *options]) == 0
    assert json.loads(capsys.readouterr().out)["findings"][0]["code"] == "blank-images"
    assert main([str(root), *options, "--strict"]) == 3
    capsys.readouterr()
    assert main([str(root), *options, "--strict", "--quick"]) == 0
    assert json.loads(capsys.readouterr().out)["findings"] == []


@pytest.mark.parametrize("option", ["--json", "--output_dir"])
def test_nothing_is_written_into_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str) -> None:
    root = tmp_path / "data"
    clean_coco(root)
    assert main([str(root), option, str(label_file(root, "train2017"))]) == 2
    assert "is an input of this command" in capsys.readouterr().err


def test_a_folder_without_labels_and_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "empty"), "--output_dir", str(tmp_path / "drawn")]) == 3
    assert "no train labels found" in capsys.readouterr().out
    assert main([str(tmp_path / "absent")]) == 3
    assert "is not a folder" in capsys.readouterr().err
