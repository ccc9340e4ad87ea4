from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from yolox.checkpoint import load_model
from yolox.models.decoding import DecodedDetector, official_output
from yolox.tools.export import main

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    from dataclasses import replace

    from yolox.experiments import get_experiment
    from yolox.models.detector import build_detector

    torch.manual_seed(0)
    detector = build_detector(replace(get_experiment("yolox_nano").model, num_classes=3))
    path = tmp_path_factory.mktemp("export") / "model.pth"
    torch.save(detector.state_dict(), path)
    return str(path)


def images(batch: int) -> np.ndarray:
    return RNG.uniform(0, 255, (batch, 3, 64, 64)).astype(np.float32)


def run_onnx(path: Path, batch: int, name: str = "images") -> tuple[np.ndarray, list[np.ndarray], list[str]]:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = images(batch)
    return given, session.run(None, {name: given}), [output.name for output in session.get_outputs()]


@pytest.mark.backends
@pytest.mark.parametrize("opset", ["18", "9"])
def test_onnx_decoded_with_a_free_batch(checkpoint: str, tmp_path: Path, opset: str) -> None:
    pytest.importorskip("onnxscript")
    path = tmp_path / "new" / "a.onnx"
    words = ["-c", checkpoint, "--output-name", str(path), "--tsize", "64", "--dynamic", "--decode_in_inference"]
    assert main([*words, "-o", opset, "--input", "in", "--output", "out"]) == 0
    detector = DecodedDetector(load_model(checkpoint).detector, official_output)
    for batch in (1, 3):
        given, (found,), names = run_onnx(path, batch, "in")
        with torch.no_grad():
            expected = detector(torch.from_numpy(given)).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
        assert names == ["out"]


@pytest.mark.backends
def test_onnx_official_default_is_grid_relative(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxscript")
    path = tmp_path / "a.onnx"
    assert main(["-c", checkpoint, "--output-name", str(path), "eval.test_size", "64", "--no-onnxsim"]) == 0
    given, (found,), _ = run_onnx(path, 1)
    with torch.no_grad():
        raw = load_model(checkpoint).detector(torch.from_numpy(given))
    np.testing.assert_allclose(found[..., :4], raw.boxes.numpy(), atol=1e-4)
    np.testing.assert_allclose(found[..., 4:5], raw.objectness.sigmoid().numpy(), atol=1e-5)
    np.testing.assert_allclose(found[..., 5:], raw.classes.sigmoid().numpy(), atol=1e-5)
    assert "decode with strides" in capsys.readouterr().out
    onnx = pytest.importorskip("onnx")
    metadata = {item.key: item.value for item in onnx.load(str(path)).metadata_props}
    assert json.loads(metadata["class_names"]) == ["class 0", "class 1", "class 2"]


@pytest.mark.filterwarnings("ignore:.*torch.jit.load.*:DeprecationWarning")
def test_torchscript_with_two_outputs(checkpoint: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    words = ["-c", checkpoint, "--output-name", str(path), "--tsize", "64", "--batch-size", "2", "--two_outputs"]
    assert main(words) == 0
    extra = {"class_names.json": ""}
    module = torch.jit.load(str(path), _extra_files=extra)
    given = torch.from_numpy(images(2))
    with torch.no_grad():
        boxes, scores = module(given)
        expected = DecodedDetector(load_model(checkpoint).detector)(given)
    torch.testing.assert_close(boxes, expected[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(scores, expected[1], rtol=1e-3, atol=1e-5)
    assert len(json.loads(extra["class_names.json"])) == 3


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["--output-name", "a.tflite"], 2, "ends in '.tflite'"),
        (["--two_outputs", "--decode_in_inference"], 2, "Leave one out"),
        (["--opsets", "3"], 2, "Did you mean '--opset'"),
        (["--tsize", "33"], 2, "multiples of 32"),
        (["-c", "none.pth"], 4, "does not exist"),
    ],
)
def test_bad_input(checkpoint: str, words: list[str], code: int, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-c", checkpoint, *words]) == code
    error = capsys.readouterr().err
    assert part in error
    assert "Traceback" not in error


@pytest.mark.backends
@pytest.mark.parametrize("opset", ["9", "17", "18", "23"])
def test_the_file_says_what_it_needs_at_every_opset(checkpoint: str, tmp_path: Path, opset: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    path = tmp_path / "a.onnx"
    assert main(["-c", checkpoint, "--output-name", str(path), "--tsize", "64", "-o", opset]) == 0
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.get_modelmeta().custom_metadata_map
    assert json.loads(found["class_names"]) == ["class 0", "class 1", "class 2"]
    assert json.loads(found["input_size"]) == [64, 64]
    assert json.loads(found["preprocessing"])["channels"] == "BGR"
    assert "grid" in found["outputs"]


@pytest.mark.parametrize("opset", ["99", "8"])
def test_an_opset_that_does_not_exist_is_refused(
    checkpoint: str, tmp_path: Path, opset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.onnx"
    assert main(["-c", checkpoint, "--output-name", str(path), "-o", opset]) == 2
    assert "expected 9 to 23" in capsys.readouterr().err
    assert not path.exists()


def test_a_program_of_torch_export(checkpoint: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pt2"
    words = ["-c", checkpoint, "--output-name", str(path), "--tsize", "64", "--two_outputs", "--dynamic"]
    assert main(words) == 0
    notes = {"class_names": ""}
    program = torch.export.load(path, extra_files=notes)
    assert json.loads(notes["class_names"]) == ["class 0", "class 1", "class 2"]
    given = torch.from_numpy(images(3))
    expected = DecodedDetector(load_model(checkpoint).detector).eval()(given)
    for ours, theirs in zip(program.module()(given), expected, strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-3, atol=1e-2)
