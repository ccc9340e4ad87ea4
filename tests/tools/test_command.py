"""The command ``yolox``, and the tools that only it has."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from self_labelled import NAMES, write_checkpoint, write_data

from yolox import __version__
from yolox.tools.command import COMMANDS, main


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "mine.pth")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "coco", checkpoint)


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in COMMANDS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"yolox-cpu {__version__}\n"
    assert main(["trian"]) == 2
    assert "Did you mean 'train'" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_helps_without_heavy_imports(name: str) -> None:
    code = (
        "import sys; from yolox.tools.command import main; code = main(sys.argv[1:]); "
        "sys.exit(code or bool({'torch', 'cv2', 'pytorch_lightning', 'fastapi'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, name, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"usage: yolox {name}" in done.stdout


@pytest.mark.parametrize("module", sorted({module for module, _ in COMMANDS.values()} | {"demo"}))
def test_every_tool_runs_as_a_module(module: str) -> None:
    command = [sys.executable, "-m", f"yolox.tools.{module}", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"usage: python -m yolox.tools.{module}" in done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "num_processes" in script
    assert all(name in script for name in COMMANDS)
    assert main(["completion", "cmd"]) == 2


def test_bash_completes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = (
        capsys.readouterr().out + '\nCOMP_WORDS=(yolox train --num_p); COMP_CWORD=2; _yolox; echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "--num_processes"


def test_predict_writes_every_format_and_prints_json(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", str(data / "val2017"), "-c", str(checkpoint), "--output_dir", str(tmp_path / "out"), "--json"]
    assert main([*words, "--formats", "pictures", "coco", "csv", "yolo", "crops", "--classes", *NAMES]) == 0
    shown = capsys.readouterr()
    rows = [json.loads(line) for line in shown.out.splitlines()]
    assert [row["image"] for row in rows] == [f"{number:03d}.png" for number in range(1, 6)]
    assert "001.png: " in shown.err
    written = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert len(written["annotations"]) == sum(len(row["objects"]) for row in rows) > 0
    assert (tmp_path / "out" / "001.png").is_file()
    assert main([*words[:4], "--classes", "aple"]) == 2
    assert "Did you mean 'apple'" in capsys.readouterr().err


def test_dry_run_builds_and_writes_nothing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    annotations = data / "annotations"
    (annotations / "instances_train2017.json").write_bytes((annotations / "instances_val2017.json").read_bytes())
    if not (data / "train2017").exists():
        (data / "train2017").symlink_to(data / "val2017")
    words = ["train", "-n", "yolox_nano", "--data_dir", str(data), "-b", "2", "--num_workers", "0", "--logger", "none"]
    assert main([*words, "--dry-run", "--json", "max_epoch=3"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["dry_run"] is True
    assert "3 epochs" in shown.err
    assert list(tmp_path.iterdir()) == []


def test_info_and_settings(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["yolox-cpu"] == __version__
    assert main(["info", str(checkpoint)]) == 0
    assert "class names: apple, bolt, crab" in capsys.readouterr().out
    assert main(["settings", "-n", "yolox_s", "max_epoch=7"]) == 0
    text = capsys.readouterr().out
    assert yaml.safe_load(text)["recipe"]["max_epoch"] == 7
    assert "# YOLOX_CACHE=" in text


@pytest.mark.backends
def test_binary_files_for_a_foreign_runtime(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    common = ["-c", str(checkpoint), "--data_dir", str(data), "--num_workers", "0"]
    assert main(["val", *common, "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)
    out = tmp_path / "bin"
    assert main(["preprocess", *common, "--output_dir", str(out)]) == 0
    index = json.loads((out / "index.json").read_text())
    assert (index["shape"], len(index["images"])) == ([1, 3, 64, 64], 5)
    for name, options in (("grid", []), ("pixels", ["--decode_in_inference"]), ("two", ["--two_outputs"])):
        assert main(["export", "-c", str(checkpoint), "--output-name", str(tmp_path / f"{name}.onnx"), *options]) == 0
        session = onnxruntime.InferenceSession(str(tmp_path / f"{name}.onnx"), providers=["CPUExecutionProvider"])
        (tmp_path / name).mkdir()
        for image in index["images"]:
            values = np.fromfile(out / image["bin"], np.float32).reshape(index["shape"])
            for number, output in enumerate(session.run(None, {"images": values})):
                output.astype(np.float32).tofile(tmp_path / name / f"{image['id']}_{number}.bin")
        capsys.readouterr()
        assert main(["postprocess", str(out), "--results", str(tmp_path / name), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["AP"] == pytest.approx(expected["AP"], abs=0.05)  # a network of random weights has near ties
    (tmp_path / "two" / "3_1.bin").write_bytes(b"short")
    assert main(["postprocess", str(out), "--results", str(tmp_path / "two")]) == 3
    assert "3_1.bin' holds 1 float32 values; expected 84 x 3" in capsys.readouterr().err


def test_coco_results_of_another_detector(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = data / "annotations" / "instances_val2017.json"
    rows = [{**row, "score": 0.9} for row in json.loads(truth.read_text())["annotations"]]
    (tmp_path / "results.json").write_text(json.dumps(rows))
    assert main(["postprocess", str(truth), "--results", str(tmp_path / "results.json"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["AP"] == pytest.approx(1.0)
    (tmp_path / "results.json").write_text(json.dumps([{"image_id": 1}]))
    assert main(["postprocess", str(truth), "--results", str(tmp_path / "results.json")]) == 3
    assert main(["postprocess", str(truth), "--results", str(tmp_path / "results.json"), "--json", str(truth)]) == 2


def test_a_picture_is_predicted_from_the_deployed_folder_of_nothing(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((8, 8, 3), np.uint8))
    assert main(["predict", str(tmp_path / "a.png"), "-c", str(tmp_path)]) == 4
