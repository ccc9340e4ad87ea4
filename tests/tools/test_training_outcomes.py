"""What single runs of the training tool leave behind: weights, counts, a report; and data that is too small."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from training_runs import SILENT, rows, words

from yolox.tools import train as train_tool

pytestmark = [SILENT]


def test_the_best_weights_of_a_run_start_the_next_one_of_its_name(data: Path, tmp_path: Path) -> None:
    one_epoch = ("max_epoch", "1", "eval_interval", "1", "no_aug_epochs", "0", "warmup_epochs", "0")
    assert train_tool.main([*words(data, tmp_path), *one_epoch]) == 0
    best = tmp_path / "yolox_nano" / "best_ckpt.pth"
    assert train_tool.main([*words(data, tmp_path, "-c", str(best)), *one_epoch]) == 0
    assert best.exists()
    assert (tmp_path / "yolox_nano.old1" / "best_ckpt.pth").exists()


def test_a_loss_that_is_not_finite_stops_the_run(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """At its step, with the images named, and without a file of useless weights."""
    ruinous = ("basic_lr_per_img", "100000", "warmup_epochs", "0", "eval_interval", "9")
    assert train_tool.main([*words(data, tmp_path), *ruinous]) == 1
    error = capfd.readouterr().err
    assert "training stopped at step" in error
    assert "of process 0 (images" in error or "the gradients" in error
    assert "No checkpoint had been written" in error
    assert "Traceback" not in error
    assert not list(tmp_path.rglob("*.pth"))  # nothing was evaluated: there is no best checkpoint without an AP


def test_skipped_steps_are_counted_in_the_outcome(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ruinous = ("basic_lr_per_img", "100000", "warmup_epochs", "0", "eval_interval", "9", "max_epoch", "2")
    assert train_tool.main([*words(data, tmp_path, "--json"), *ruinous, "on_nonfinite", "skip"]) == 0
    said = capfd.readouterr()
    facts = json.loads(said.out)
    assert 1 <= facts["skipped_steps"] < 6
    assert facts["restored"] == 0
    assert f"not finite: {facts['skipped_steps']} steps skipped" in said.err


def test_fewer_images_than_a_batch_and_images_without_labels(data: Path, tmp_path: Path) -> None:
    content = json.loads((data / "annotations" / "instances_train2017.json").read_text())
    labelled = content["images"][0]["id"]
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] == labelled]
    (tmp_path / "few.json").write_text(json.dumps(content))
    few = ["train_ann", str(tmp_path / "few.json"), "train_images", "train2017", "max_epoch", "2"]
    assert train_tool.main([*words(data, tmp_path, "-b", "16"), *few]) == 0
    history = rows(tmp_path)
    assert [row["epoch"] for row in history] == [1, 2]
    assert all(math.isfinite(row["train/total"]) for row in history)


def test_a_report_that_cannot_be_drawn_fails_no_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no fonts")

    monkeypatch.setattr("yolox.recipe.html_report.write_report", broken)
    assert train_tool.main([*words(data, tmp_path), "max_epoch", "1", "no_aug_epochs", "0"]) == 0
    assert "report.html was not written: RuntimeError: no fonts" in capsys.readouterr().err
    assert (tmp_path / "yolox_nano" / "best_ckpt.pth").exists()
