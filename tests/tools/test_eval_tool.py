from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import described
from labelled_images import NAMES, write_data

from yolox.config import apply_fields
from yolox.experiments import get_experiment
from yolox.models.detector import build_detector
from yolox.tools.eval import main

FAST = ["--num_workers", "0", "--tsize", "64", "-b", "2"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data", 5)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    experiment = apply_fields(get_experiment("yolox_nano"), {"num_classes": 3, "exp_name": "mine"})
    torch.save(described(experiment, NAMES), tmp_path / "model.pth")
    return tmp_path / "model.pth"


def test_prints_everything_and_writes_json(
    data: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, found = tmp_path / "result.json", tmp_path / "detections.json"
    words = ["-c", str(checkpoint), "--data_dir", str(data), "--conf", "0.0001", "--json", str(out), *FAST]
    assert main([*words, "--detections", str(found)]) == 0
    rows = json.loads(found.read_text())
    assert set(rows[0]) == {"image_id", "category_id", "bbox", "score"}
    assert {row["category_id"] for row in rows} <= {1, 2, 3}
    shown = capsys.readouterr().out
    assert "5 images" in shown
    assert "mine, 3 classes" in shown
    assert "per class AP" in shown
    assert "per class AR" in shown
    assert shown.count("Average Precision") == shown.count("Average Recall") == 6
    assert "all 5 images" in shown
    values = json.loads(out.read_text())
    assert {"AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "forward_ms", "nms_ms"} <= set(values)
    assert values["settings"]["confidence"] == 0.0001
    assert values["settings"]["test_size"] == [64, 64]
    assert values["machine"]["torch"] == torch.__version__
    assert values["APs"] is not None
    assert values["APl"] is None  # no large object is labelled


def test_written_detections_have_the_ids_of_the_label_file(data: Path, checkpoint: Path, tmp_path: Path) -> None:
    labels = data / "annotations" / "instances_val2017.json"
    words = ["-c", str(checkpoint), "--data_dir", str(data), *FAST]
    words += ["--conf", "0.00001", "--multi_label", "--detections"]
    assert main([*words, str(tmp_path / "all.json")]) == 0
    content = json.loads(labels.read_text())
    content["categories"] = [{"id": 5, "name": "crab"}, {"id": 9, "name": "apple"}]
    content["annotations"] = [{**row, "category_id": 5} for row in content["annotations"]]
    labels.write_text(json.dumps(content))
    assert main([*words, str(tmp_path / "two.json")]) == 0
    found, kept = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("all", "two"))
    ids = {1: 9, 3: 5}  # apple and crab; the file has no bolt
    assert {row["category_id"] for row in found} == {1, 2, 3}
    assert kept == [{**row, "category_id": ids[row["category_id"]]} for row in found if row["category_id"] in ids]


def test_several_classes_a_box_in_every_process(data: Path, checkpoint: Path, tmp_path: Path) -> None:
    words = ["-c", str(checkpoint), "--data_dir", str(data), "--conf", "0.00001", *FAST, "--detections"]
    found = []
    for name, options in (
        ("one", []),
        ("several", ["--multi_label"]),
        ("two", ["--multi_label", "--num_processes", "2"]),
    ):
        assert main([*words, str(tmp_path / f"{name}.json"), *options]) == 0
        found.append(len(json.loads((tmp_path / f"{name}.json").read_text())))
    assert 0 < found[0] < found[1] == found[2]


def test_data_of_the_checkpoint_and_overrides(data: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = torch.load(checkpoint, weights_only=True)
    content["experiment"]["data"]["data_dir"] = str(data)
    torch.save(content, checkpoint)
    words = ["-c", str(checkpoint), "-b", "2", "data_num_workers", "0", "eval.test_size=64,96", "nmsthre", "0.5"]
    assert main([*words, "--precision", "bf16"]) == 0
    shown = capsys.readouterr().out
    assert "GFLOPs at 64x96" in shown
    assert "NMS 0.5, precision bf16" in shown


def test_classes_are_matched_by_name(tmp_path: Path, checkpoint: Path) -> None:
    reordered = write_data(tmp_path / "two", 5, ("crab", "apple"))
    out = tmp_path / "out.json"
    assert main(["-c", str(checkpoint), "--data_dir", str(reordered), "--json", str(out), *FAST]) == 0
    rows = json.loads(out.read_text())["per_class"]
    assert [(row["name"], row["objects"]) for row in rows] == [("apple", 3), ("bolt", 0), ("crab", 2)]


def test_official_weights_of_other_classes_take_the_names_of_the_data(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(get_experiment("yolox_nano").model, num_classes=3)
    torch.save({"model": build_detector(config).state_dict()}, tmp_path / "official.pth")
    assert main(["-c", str(tmp_path / "official.pth"), "--data_dir", str(data), *FAST]) == 0
    assert "in the order of the data set" in capsys.readouterr().out


def test_no_labels_is_said(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_data(tmp_path / "bare", 5, labels=False)
    assert main(["-c", str(checkpoint), "--data_dir", str(data), *FAST]) == 0
    assert "No labels" in capsys.readouterr().out


class TouchesFile:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def refused(capsys: pytest.CaptureFixture[str], words: list[str], code: int, *parts: str) -> None:
    assert main(words) == code
    error = capsys.readouterr().err
    assert "Traceback" not in error
    for part in parts:
        assert part in error


def test_bad_model_files(data: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tail = ["--data_dir", str(data), *FAST]
    refused(capsys, ["-c", "nowhere.pth", *tail], 4, "nowhere.pth", "does not exist")
    refused(
        capsys,
        ["-n", "yolox_nano", "output_dir", str(tmp_path), *tail],
        4,
        str(tmp_path / "yolox_nano" / "best_ckpt.pth"),
    )
    short = tmp_path / "short.pth"
    short.write_bytes(checkpoint.read_bytes()[:100_000])
    refused(capsys, ["-c", str(short), *tail], 4, "truncated")
    trap = tmp_path / "executed"
    torch.save({"model": TouchesFile(str(trap))}, tmp_path / "evil.pth")
    refused(capsys, ["-c", str(tmp_path / "evil.pth"), *tail], 4, "holds code to execute")
    assert not trap.exists()
    refused(capsys, ["-c", str(checkpoint), "-n", "yolox_s", *tail], 4, "does not fit yolox_s")


def test_classes_that_do_not_fit(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_data(tmp_path / "other", 5, ("dog", "cat"))
    words = ["-c", str(checkpoint), "--data_dir", str(data), *FAST]
    refused(capsys, words, 4, "predicts 3 classes (apple, bolt, crab)", "has 2 (dog, cat)")


def test_bad_data(data: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, ["-c", str(checkpoint), "--data_dir", str(data / "none"), *FAST], 3, "is not a folder")
    (data / "annotations" / "instances_val2017.json").write_text("{")
    refused(capsys, ["-c", str(checkpoint), "--data_dir", str(data), *FAST], 3, "not valid JSON")


def test_bad_command_lines(data: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = ["-c", str(checkpoint), "--data_dir", str(data)]
    refused(capsys, [], 2, "no checkpoint given")
    refused(capsys, [*head, "--precison", "bf16"], 2, "Did you mean '--precision'")
    refused(capsys, [*head, "tets_conf", "0.1"], 2, "Did you mean 'test_conf'")
    refused(capsys, [*head, "--tsize", "100"], 2, "multiples of 32")
    refused(capsys, [*head, "--conf", "2"], 2, "from 0 to 1")
    refused(capsys, [*head, "model.width", "2"], 2, "the weights decide")
    refused(capsys, ["-n", "yolox_nanno", *head], 2, "Did you mean 'yolox_nano'")


def test_an_unwritable_json_is_an_error(data: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["-c", str(checkpoint), "--data_dir", str(data), "--json", str(data / "none" / "x.json"), *FAST]
    refused(capsys, words, 1, "cannot write")


@pytest.mark.realdata
def test_the_published_weights_reach_their_ap(nano_weights: Path, coco_mini: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    words = ["-c", str(nano_weights), "--data_dir", str(coco_mini), "--conf", "0.001", "--num_workers", "0"]
    assert main([*words, "--json", str(out)]) == 0
    values = json.loads(out.read_text())
    assert values["AP"] == pytest.approx(0.3416, abs=0.002)
    assert values["AP50"] == pytest.approx(0.5154, abs=0.003)
    assert values["images"] == 64
    assert values["images_missing"] == 0


@pytest.mark.parametrize("labels", [True, False])
def test_report(labels: bool, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, page = write_data(tmp_path / "some", 5, labels=labels), tmp_path / "page.html"
    words = ["-c", str(checkpoint), "--data_dir", str(data), "--conf", "0.0001", "--report", str(page), *FAST]
    assert main(words) == 0
    assert f"written: {page}" in capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    assert ("Confusion" in text) is labels
    assert ("none: the images have no labels" in text) is not labels
