"""Every format of the export, loaded again by the library it is for and compared with the network."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from yolox.checkpoint import load_model
from yolox.evaluation.postprocess import postprocess
from yolox.experiments import get_experiment
from yolox.models.decoding import DecodedDetector
from yolox.models.detector import build_detector
from yolox.prediction.models import load_predictor
from yolox.tools.export import main

Runnable = Callable[[np.ndarray], Sequence[np.ndarray]]
CONFIDENCE, NMS_IOU = 0.4, 0.3


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A network without training whose boxes overlap and whose scores spread over all of 0...1."""
    torch.manual_seed(0)
    detector = build_detector(replace(get_experiment("yolox_nano").model, num_classes=3))
    with torch.no_grad():
        for norm in (part for part in detector.modules() if isinstance(part, torch.nn.BatchNorm2d)):
            torch.nn.init.constant_(norm.weight, 2.0)  # otherwise the picture is lost on the way through the layers
        for conv in (*detector.head.cls_preds, *detector.head.obj_preds):
            torch.nn.init.normal_(conv.weight, 0, 0.5)
            torch.nn.init.constant_(conv.bias, 1.0)
        for conv in detector.head.reg_preds:
            assert isinstance(conv, torch.nn.Conv2d)
            assert conv.bias is not None
            conv.bias[2:] = 1.0
    path = tmp_path_factory.mktemp("formats") / "model.pth"
    torch.save(detector.state_dict(), path)
    return str(path)


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32)


def expected(checkpoint: str, given: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with torch.no_grad():
        boxes, scores = DecodedDetector(load_model(checkpoint).detector).eval()(torch.from_numpy(given))
    return boxes.numpy(), scores.numpy()


def run_onnx(path: Path) -> Runnable:
    session = pytest.importorskip("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda given: session.run(None, {"images": given})


def run_openvino(path: Path) -> Runnable:
    library = pytest.importorskip("openvino")
    compiled = library.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda given: [np.array(values) for values in compiled(given).values()]


def run_program(path: Path) -> Runnable:
    module = torch.export.load(path).module()
    return lambda given: [tensor.detach().numpy() for tensor in module(torch.from_numpy(given))]


@pytest.mark.backends
@pytest.mark.parametrize(
    ("kind", "name", "run"),
    [("onnx", "a.onnx", run_onnx), ("openvino", "a.xml", run_openvino), ("torch_export", "a.pt2", run_program)],
)
def test_batch_height_and_width_are_free(
    checkpoint: str, tmp_path: Path, kind: str, name: str, run: Callable[[Path], Runnable]
) -> None:
    words = [
        "-c",
        checkpoint,
        "--format",
        kind,
        "--output-name",
        str(tmp_path / name),
        "--two_outputs",
        "--tsize",
        "64",
    ]
    assert main([*words, "--dynamic", "--dynamic_size"]) == 0
    again = run(tmp_path / name)
    for shape in ((1, 3, 64, 64), (3, 3, 64, 96), (2, 3, 128, 64)):
        given = images(*shape)
        for ours, theirs in zip(again(given), expected(checkpoint, given), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-2)


@pytest.mark.backends
def test_openvino_is_described_and_fixed_where_nothing_is_free(checkpoint: str, tmp_path: Path) -> None:
    library = pytest.importorskip("openvino")
    path = tmp_path / "a.xml"
    assert main(["-c", checkpoint, "--output-name", str(path), "--tsize", "64", "--two_outputs"]) == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.bin", "a.xml"]
    model = library.Core().read_model(str(path))
    assert list(model.input(0).shape) == [1, 3, 64, 64]
    assert json.loads(model.get_rt_info(["model_info", "class_names"]).astype(str)) == ["class 0", "class 1", "class 2"]


@pytest.mark.backends
@pytest.mark.parametrize(
    ("name", "run", "options", "multi_label"),
    [
        ("a.onnx", run_onnx, [], False),
        ("a.onnx", run_onnx, ["--multi_label"], True),
        ("a.onnx", run_onnx, ["-o", "11"], False),
        ("a.xml", run_openvino, [], False),
    ],
)
def test_suppression_inside_the_graph_is_ours(
    checkpoint: str,
    tmp_path: Path,
    name: str,
    run: Callable[[Path], Runnable],
    options: list[str],
    multi_label: bool,
) -> None:
    opset = [word for word in options if word != "--multi_label"]
    plain = tmp_path / f"plain_{name}"
    words = ["-c", checkpoint, "--tsize", "96", "--dynamic", "--output-name"]
    assert main([*words, str(plain), "--two_outputs", *opset]) == 0
    thresholds = ["--conf", str(CONFIDENCE), "--nms_iou", str(NMS_IOU)]
    assert main([*words, str(tmp_path / name), "--nms", *thresholds, *options]) == 0
    given = images(2, 3, 96, 96)
    (found,) = run(tmp_path / name)(given)
    boxes, scores = run(plain)(given)  # scores that differ in the last digits would change the order of suppression
    for ours, theirs in zip((boxes, scores), expected(checkpoint, given), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-2)
    images_found = postprocess(boxes, scores, confidence=CONFIDENCE, nms_iou=NMS_IOU, multi_label=multi_label)
    assert len(found) == sum(len(one.scores) for one in images_found)
    candidates = (scores >= CONFIDENCE).sum() if multi_label else (scores.max(axis=2) >= CONFIDENCE).sum()
    assert 10 < len(found) < candidates
    for index, one in enumerate(images_found):
        rows = found[found[:, 0] == index]
        rows = rows[np.lexsort((-rows[:, 6], rows[:, 5]))]
        order = np.lexsort((-one.scores, one.labels))
        np.testing.assert_array_equal(rows[:, 5], one.labels[order])
        np.testing.assert_allclose(rows[:, 6], one.scores[order], atol=1e-4)
        np.testing.assert_allclose(rows[:, 1:5], one.boxes_xyxy[order], rtol=1e-3, atol=1e-2)


@pytest.mark.backends
def test_a_file_of_free_size_is_predicted_at_the_size_in_its_metadata(checkpoint: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    path = tmp_path / "a.onnx"
    words = ["-c", checkpoint, "--output-name", str(path), "--two_outputs", "--dynamic", "--dynamic_size"]
    assert main([*words, "--tsize", "96"]) == 0
    predictor = load_predictor(path)
    assert predictor.input_size == (96, 96)
    given = images(1, 3, 96, 96).astype(np.uint8)
    for ours, theirs in zip(predictor.run_batch(given), expected(checkpoint, given), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-2)


def test_the_format_names_the_file(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["-c", checkpoint, "--format", "torchscript", "--tsize", "64", "--json"]) == 0
    assert [file.name for file in tmp_path.iterdir()] == ["yolox.pt"]
    out, err = capsys.readouterr()
    assert json.loads(out) == {"written": "yolox.pt", "format": "torchscript"}
    assert "written: yolox.pt" in err


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--output-name", "a.pt", "--format", "onnx"], "contradict each other"),
        (["--output-name", "a.pt", "--dynamic_size"], "one height and width"),
        (["--output-name", "a.pt2", "--nms"], "no meaning for the format torch_export"),
        (["--output-name", "a.pt", "-o", "17"], "no meaning for the format torchscript"),
        (["--output-name", "a.safetensors", "--tsize", "64"], "no meaning for the format weights"),
        (["--conf", "0.3"], "without --nms"),
        (["--nms", "--two_outputs"], "Leave one out"),
        (["--two_outputs", "--output", "found"], "fixed names"),
        (["--dynamic_size", "-o", "11"], "expected 18 or later"),
        (["--nms", "-o", "10"], "expected 11 or later"),
        (["--format", "ncnn", "--dynamic"], "takes one image of one height and width"),
        (["--format", "ncnn", "--dynamic_size"], "takes one image of one height and width"),
        (["--format", "ncnn", "--batch-size", "2"], "an ncnn graph takes one image"),
        (["--format", "ncnn", "--nms"], "--nms has no meaning for the format ncnn"),
        (["--format", "ncnn", "-o", "18"], "--opset has no meaning for the format ncnn"),
        (["--format", "ncnn", "--input", "my images"], "named 'my images', 'output'"),
        (["--format", "ncnn", "--input", "12"], "begin with no digit"),
        (["--format", "ncnn", "--input", "x", "--output", "x"], "expected different names"),
        (["--format", "ncnn", "--input", "x" * 256], "cannot have an input"),
        (["--format", "ncnn", "--output-name", "a.onnx"], "contradict each other"),
        (["--format", "ncnn", "--output-name", "a.ncnn"], "ends in '.ncnn'"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(
    checkpoint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    part: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["-c", checkpoint, *words]) == 2
    assert part in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
