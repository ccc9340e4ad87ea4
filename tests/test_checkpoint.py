from __future__ import annotations

import json
import os
import pickle
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import described
from torch import Tensor

from yolox.checkpoint import (
    load_model,
    load_weights_,
    read_checkpoint,
    recognise,
    weights_of,
)
from yolox.class_names import COCO_NAMES
from yolox.errors import ModelFileError
from yolox.experiments import EXPERIMENTS, get_experiment
from yolox.models.detector import Detector, build_detector
from yolox.prediction.official_output import class_names_of


def nano(num_classes: int = 80) -> Detector:
    return build_detector(replace(get_experiment("yolox_nano").model, num_classes=num_classes))


def ours(num_classes: int = 3) -> dict[str, Any]:
    experiment = get_experiment("yolox_nano")
    experiment = replace(experiment, exp_name="mine", model=replace(experiment.model, num_classes=num_classes))
    return {**described(experiment, [f"thing {k}" for k in range(num_classes)]), "epoch": 4}


class TouchesFile:
    """Unpickling an instance creates a file: the proof that code ran."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "model.pth"
    torch.save({"model": nano().state_dict()}, path)
    return path


def test_our_checkpoint_describes_itself(tmp_path: Path) -> None:
    content = ours()
    torch.save(content, tmp_path / "a.pth")
    loaded = load_model(tmp_path / "a.pth")
    assert loaded.experiment.exp_name == "mine"
    assert loaded.experiment.model.num_classes == 3
    assert loaded.class_names == ("thing 0", "thing 1", "thing 2")
    assert not loaded.detector.training
    for key, value in loaded.detector.state_dict().items():
        assert torch.equal(value, content["model"][key])


@pytest.mark.parametrize("wrap", ["model", "state_dict", "module.", None])
def test_official_and_plain_weights_are_recognised(tmp_path: Path, wrap: str | None) -> None:
    weights = nano(7).state_dict()
    content: dict[str, Any] = {"start_epoch": 3, wrap: weights} if wrap in ("model", "state_dict") else dict(weights)
    if wrap == "module.":
        content = {"model": OrderedDict((f"module.{key}", value) for key, value in weights.items())}
    torch.save(content, tmp_path / "a.pth")
    loaded = load_model(tmp_path / "a.pth")
    assert loaded.experiment == replace(
        get_experiment("yolox_nano"), model=replace(get_experiment("yolox_nano").model, num_classes=7)
    )
    assert loaded.class_names == tuple(f"class {k}" for k in range(7))
    assert "recognised" in loaded.source


def test_eighty_classes_have_coco_names(plain: Path) -> None:
    assert load_model(plain).class_names == COCO_NAMES
    assert len(set(COCO_NAMES)) == 80


def test_each_of_the_seven_is_recognised(golden_dir: Path) -> None:
    table = json.loads((golden_dir / "state_dict_keys.json").read_text())
    for name, experiment in EXPERIMENTS.items():
        shapes = table.get(name) or table[name.replace("yolov3", "yolox_darknet53")]
        weights = {key: torch.empty(shape, device="meta") for key, shape in dict(shapes).items()}
        assert recognise(weights, "x.pth") == experiment


def test_other_widths_are_not_recognised(tmp_path: Path) -> None:
    config = replace(get_experiment("yolox_nano").model, width=0.125)
    detector = build_detector(config)
    torch.save(detector.state_dict(), tmp_path / "a.pth")
    with pytest.raises(ModelFileError, match="none of the published models"):
        load_model(tmp_path / "a.pth")
    loaded = load_model(tmp_path / "a.pth", replace(get_experiment("yolox_nano"), model=config))
    assert loaded.experiment.model == config


def test_numpy_scalars_of_official_training_are_read(tmp_path: Path) -> None:
    content = {"model": nano().state_dict(), "best_ap": np.float64(0.25), "curr_ap": np.float32(0.5), "start_epoch": 3}
    torch.save(content, tmp_path / "a.pth")
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("a.pth", "old.pth"):
        assert read_checkpoint(tmp_path / name)["best_ap"] == 0.25


def test_code_in_a_file_is_refused_and_not_executed(tmp_path: Path) -> None:
    trap = tmp_path / "executed"
    for legacy in (False, True):
        file = tmp_path / f"evil{legacy}.pth"
        torch.save({"model": {}, "x": TouchesFile(str(trap))}, file, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(ModelFileError, match="holds code to execute"):
            read_checkpoint(file)
    raw = tmp_path / "raw.pkl"
    raw.write_bytes(pickle.dumps(TouchesFile(str(trap))))
    with pytest.raises(ModelFileError):
        read_checkpoint(raw)
    assert not trap.exists()


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.99])
@pytest.mark.parametrize("legacy", [False, True])
def test_truncated_files_are_named(plain: Path, keep: float, legacy: bool) -> None:
    if legacy:
        torch.save({"model": nano().state_dict()}, plain, _use_new_zipfile_serialization=False)
    data = plain.read_bytes()
    plain.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(ModelFileError, match=r"model\.pth.*truncated"):
        read_checkpoint(plain)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"hello, I am a text file", "no PyTorch file"), (b"PK\x05\x06" + b"\0" * 18, "no PyTorch file")],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(ModelFileError, match=message):
        read_checkpoint(tmp_path / "a.pth")


def test_missing_files_folders_and_strange_contents(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="does not exist"):
        read_checkpoint(tmp_path / "none.pth")
    with pytest.raises(ModelFileError, match="is a folder"):
        read_checkpoint(tmp_path)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ModelFileError, match="holds list"):
        read_checkpoint(tmp_path / "list.pth")
    torch.save({"weights": torch.zeros(2), "other": 1}, tmp_path / "foreign.pth")
    with pytest.raises(ModelFileError, match=r"no YOLOX weights \(found: weights, other\)"):
        load_model(tmp_path / "foreign.pth")


def test_class_counts_that_do_not_fit(tmp_path: Path, plain: Path) -> None:
    with pytest.raises(ModelFileError, match="predicts 80 classes, 71 were expected"):
        load_model(plain, num_classes=71)
    content = ours()
    content["class_names"] = ["one"]
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ModelFileError, match="3 classes but names 1"):
        load_model(tmp_path / "a.pth")


def test_names_from_elsewhere_cannot_steer_a_terminal(tmp_path: Path) -> None:
    content = ours()
    content["class_names"] = ["\x1b[2Jred", " two\nlines ", "caf\u00e9"]
    torch.save(content, tmp_path / "a.pth")
    shown = ("\\x1b[2Jred", "two\\nlines", "caf\u00e9")
    assert load_model(tmp_path / "a.pth").class_names == shown
    assert class_names_of({"class_names": json.dumps(content["class_names"])}, 3) == shown


def test_the_wrong_model_is_named(plain: Path) -> None:
    with pytest.raises(ModelFileError, match="does not fit yolox_tiny"):
        load_model(plain, get_experiment("yolox_tiny"))


def test_newer_formats_and_unknown_fields_are_refused(tmp_path: Path) -> None:
    torch.save({**ours(), "format": 99}, tmp_path / "a.pth")
    with pytest.raises(ModelFileError, match="format 99"):
        load_model(tmp_path / "a.pth")
    content = ours()
    content["experiment"]["recipe"]["max_epochs"] = 3
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ModelFileError, match=r"cannot read.*max_epochs"):
        load_model(tmp_path / "a.pth")


def test_fine_tuning_takes_what_fits_and_reports_the_rest() -> None:
    weights = nano(80).state_dict()
    detector = nano(5)
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    report = load_weights_(detector, weights)
    left_out = {key for key, _, _ in report.mismatched}
    assert left_out == {f"head.cls_preds.{k}.{part}" for k in range(3) for part in ("weight", "bias")}
    assert report.loaded == len(weights) - 6
    assert not report.missing
    assert not report.unused
    assert "6 left out, other shape" in str(report)
    for key, value in detector.state_dict().items():
        assert torch.equal(value, before[key] if key in left_out else weights[key])


def test_strict_loading_changes_nothing_when_it_refuses() -> None:
    weights: dict[str, Tensor] = dict(nano().state_dict())
    weights["extra"] = torch.zeros(1)
    del weights["head.stems.0.conv.weight"]
    detector = nano()
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    with pytest.raises(ModelFileError, match="1 not in the file"):
        load_weights_(detector, weights, strict=True)
    assert all(torch.equal(value, before[key]) for key, value in detector.state_dict().items())
    report = load_weights_(detector, weights)
    assert report.missing == ("head.stems.0.conv.weight",)
    assert report.unused == ("extra",)


def test_nothing_that_fits_is_an_error() -> None:
    with pytest.raises(ModelFileError, match="no tensor"):
        load_weights_(nano(), {"a": torch.zeros(1)})


def test_half_precision_weights_are_converted(tmp_path: Path) -> None:
    torch.save({"model": {key: v.half() for key, v in nano().state_dict().items()}}, tmp_path / "a.pth")
    detector = load_model(tmp_path / "a.pth").detector
    assert {value.dtype for value in detector.parameters()} == {torch.float32}


@pytest.mark.realdata
def test_the_real_weights(nano_weights: Path) -> None:
    loaded = load_model(nano_weights, num_classes=80)
    assert loaded.experiment == get_experiment("yolox_nano")
    assert weights_of(read_checkpoint(nano_weights), nano_weights).keys() == loaded.detector.state_dict().keys()
