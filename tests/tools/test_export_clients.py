"""Exported files as programs of others read them: what each does with the output was read in its code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from yolox.checkpoint import load_model
from yolox.data.image_ops import letterbox
from yolox.evaluation.postprocess import postprocess
from yolox.models.decoding import DecodedDetector
from yolox.structures import Size
from yolox.tools.export import main

pytestmark = [pytest.mark.backends, pytest.mark.realdata]
SIDE = 416


@pytest.fixture(scope="module")
def files(nano_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the export by default, as an ONNX file and for OpenVINO."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("openvino")
    folder = tmp_path_factory.mktemp("clients")
    for name in ("a.onnx", "a.xml"):
        assert main(["-c", str(nano_weights), "-n", "yolox_nano", "--output-name", str(folder / name)]) == 0
    return folder


@pytest.fixture(scope="module")
def photographs(coco_mini: Path) -> list[np.ndarray]:
    found = [cv2.imread(str(path)) for path in sorted((coco_mini / "val2017").glob("*.jpg"))[:6]]
    assert len(found) == 6
    return [np.asarray(image) for image in found if image is not None]


@pytest.fixture(scope="module")
def network(nano_weights: Path) -> DecodedDetector:
    return DecodedDetector(load_model(str(nano_weights)).detector).eval()


def run_onnx(path: Path, images: np.ndarray) -> np.ndarray:
    session: Any = pytest.importorskip("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (only,) = session.get_inputs()
    assert (only.shape, only.type) == ([1, 3, SIDE, SIDE], "tensor(float)")
    return np.array(session.run(None, {only.name: images})[0])


def run_openvino(path: Path, images: np.ndarray) -> np.ndarray:
    library: Any = pytest.importorskip("openvino")
    compiled = library.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array(compiled(images)[0])


def decoded(output: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes ``[A, 4]`` and scores ``[A, C]`` of one output ``[1, A, 5 + C]``, decoded in float64.

    Frigate (``post_process_yolox``) and the official demos (``demo_postprocess``) agree: cells of strides 8, 16, 32,
    row by row; the centre is ``(xy + cell) * stride``, the size ``exp(wh) * stride``, the score object x class.
    """
    rows = output[0].astype(np.float64)
    assert len(rows) == sum((SIDE // stride) ** 2 for stride in (8, 16, 32)) == 3549
    boxes = np.empty((len(rows), 4))
    anchor = 0
    for stride in (8, 16, 32):
        for row in range(SIDE // stride):
            for column in range(SIDE // stride):
                x, y, log_width, log_height = rows[anchor, :4]
                half = np.exp([log_width, log_height]) * stride / 2
                centre = np.array([x + column, y + row]) * stride
                boxes[anchor] = *(centre - half), *(centre + half)
                anchor += 1
    return boxes, rows[:, 4:5] * rows[:, 5:]


def frigate_detections(boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """``[20, 6]``: class, score, top, left, bottom, right as shares of the input; rows of zeros where there are fewer.

    Frigate gives OpenCV's suppression corners where it expects a corner and a size, with 0.4 for both thresholds.
    """
    best = scores.argmax(axis=1)
    values = scores.max(axis=1)
    kept = cv2.dnn.NMSBoxes(boxes.tolist(), values.tolist(), 0.4, 0.4)
    detections = np.zeros((20, 6))
    for place, index in enumerate(np.asarray(kept, int).ravel()[:20]):
        left, top, right, bottom = boxes[index] / SIDE
        detections[place] = best[index], values[index], top, left, bottom, right
    return detections


def test_frigate_finds_what_the_network_finds(
    files: Path, photographs: list[np.ndarray], network: DecodedDetector
) -> None:
    """Frigate gives the network a region stretched to its input: ``nchw``, ``float_denorm`` (0 to 255), ``bgr``."""
    total = 0
    for photograph in photographs:
        given = cv2.resize(photograph, (SIDE, SIDE)).transpose(2, 0, 1)[None].astype(np.float32)
        with torch.no_grad():
            boxes, scores = network(torch.from_numpy(given))
        found = frigate_detections(*decoded(run_onnx(files / "a.onnx", given)))
        np.testing.assert_allclose(found, frigate_detections(boxes[0].numpy(), scores[0].numpy()), atol=1e-3)
        (ours,) = postprocess(boxes, scores, confidence=0.4, nms_iou=0.4)
        found = found[found[:, 1] > 0]
        assert (len(found) > 0) == (len(ours.scores) > 0)
        if len(found):
            best = ours.scores.argmax()
            assert found[0, 0] == ours.labels[best]
            np.testing.assert_allclose(found[0, [3, 2, 5, 4]] * SIDE, ours.boxes_xyxy[best], atol=0.1)
        total += len(found)
    assert total > 5


def official_demo(boxes: np.ndarray, scores: np.ndarray) -> list[tuple[int, float, list[float]]]:
    """Class, score and box of each detection, best first, as the official demos of ONNX Runtime and OpenVINO find them.

    Scores above 0.1; a better box of any class suppresses another above an IoU of 0.45, of boxes a pixel larger.
    """
    labels, values = scores.argmax(axis=1), scores.max(axis=1)
    order = [index for index in np.argsort(-values) if values[index] > 0.1]
    kept: list[int] = []
    for index in order:
        for better in kept:
            corner = np.maximum(boxes[index, :2], boxes[better, :2])
            sides = np.minimum(boxes[index, 2:], boxes[better, 2:]) - corner + 1
            inside = np.prod(np.maximum(sides, 0))
            areas = [np.prod(boxes[one, 2:] - boxes[one, :2] + 1) for one in (index, better)]
            if inside / (sum(areas) - inside) > 0.45:
                break
        else:
            kept.append(index)
    return [(int(labels[index]), float(values[index]), boxes[index].tolist()) for index in kept]


@pytest.mark.parametrize(("name", "run"), [("a.onnx", run_onnx), ("a.xml", run_openvino)])
def test_the_official_demos_find_what_we_find(
    files: Path, photographs: list[np.ndarray], network: DecodedDetector, name: str, run: Any
) -> None:
    total = 0
    for photograph in photographs[:3]:
        given = letterbox(photograph, Size(SIDE, SIDE))[0].transpose(2, 0, 1)[None].astype(np.float32)
        with torch.no_grad():
            boxes, scores = network(torch.from_numpy(given))
        found = official_demo(*decoded(run(files / name, given)))
        same = official_demo(boxes[0].numpy(), scores[0].numpy())
        assert [label for label, _, _ in found] == [label for label, _, _ in same]
        np.testing.assert_allclose([score for _, score, _ in found], [score for _, score, _ in same], atol=1e-3)
        np.testing.assert_allclose(np.array([box for *_, box in found]), np.array([box for *_, box in same]), atol=0.1)
        (ours,) = postprocess(boxes, scores, confidence=0.3, nms_iou=0.45, class_agnostic=True)
        drawn = np.array([box for _, score, box in found if score >= 0.3])  # by the demos
        assert len(drawn) == len(ours.scores)
        np.testing.assert_allclose(drawn, ours.boxes_xyxy[np.argsort(-ours.scores)], atol=0.1)
        total += len(drawn)
    assert total > 5


def test_supervision_takes_the_results(files: Path, photographs: list[np.ndarray]) -> None:
    supervision: Any = pytest.importorskip("supervision")
    from yolox import YOLOX

    for result in YOLOX(files / "a.onnx").predict(photographs[:2], confidence=0.4):
        detections = result.to_supervision()
        assert isinstance(detections, supervision.Detections)
        assert len(detections) == len(result.boxes) > 0
        drawn = supervision.BoxAnnotator().annotate(result.image.copy(), detections)
        assert not np.array_equal(drawn, result.image)
