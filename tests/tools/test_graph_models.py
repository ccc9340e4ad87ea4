"""ONNX and OpenVINO files as models: what `export` writes is predicted as its checkpoint is; others are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from self_labelled import NAMES, write_checkpoint, write_data

from yolox import YOLOX
from yolox.errors import ModelFileError, UsageError
from yolox.tools.command import main

pytestmark = pytest.mark.backends
CONFIDENCE = 0.4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "mine.pth")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "coco", checkpoint)


def found(model: YOLOX, images: Path) -> list[np.ndarray]:
    """Boxes and scores ``[N, 5]`` of each image."""
    results = model.predict(images / "val2017", confidence=CONFIDENCE, batch_size=2)
    return [np.concatenate((result.boxes.xyxy, result.boxes.scores[:, None]), axis=1) for result in results]


def share_in_common(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    """Share of our boxes that are among theirs: near ties in the scores of this network change a suppression."""
    near = [
        np.isclose(a[:, None], b[None], atol=0.05).all(axis=2).any(axis=1) for a, b in zip(ours, theirs, strict=True)
    ]
    return float(np.concatenate(near).mean())


@pytest.mark.parametrize("name", ["a b.onnx", "ü.xml"])
@pytest.mark.parametrize(
    "options", [{}, {"two_outputs": True, "dynamic": True}, {"nms": True, "conf": CONFIDENCE, "dynamic": True}]
)
def test_an_exported_file_finds_what_its_checkpoint_finds(
    checkpoint: Path, images: Path, tmp_path: Path, name: str, options: dict[str, object]
) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("openvino" if name.endswith(".xml") else "onnxruntime")
    model = YOLOX(checkpoint)
    deployed = YOLOX(model.export(tmp_path / name, opset=17, **options))
    assert deployed.class_names == NAMES
    expected, exported = found(model, images), found(deployed, images)
    assert sum(len(boxes) for boxes in expected) > 20
    assert share_in_common(expected, exported) > 0.9
    assert share_in_common(exported, expected) > 0.9
    again = found(YOLOX(tmp_path), images)  # the folder that holds nothing else
    np.testing.assert_array_equal(np.concatenate(again), np.concatenate(exported))


def test_a_suppression_inside_takes_one_image_at_a_time_where_the_batch_is_fixed(
    checkpoint: Path, images: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = YOLOX(checkpoint)
    deployed = YOLOX(model.export(tmp_path / "a.onnx", opset=17, nms=True, conf=CONFIDENCE))
    expected, exported = found(model, images), found(deployed, images)
    assert share_in_common(expected, exported) > 0.9
    assert share_in_common(exported, expected) > 0.9


def test_the_thresholds_of_a_suppression_inside_are_kept(
    checkpoint: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    file = YOLOX(checkpoint).export(tmp_path / "a.onnx", opset=17, nms=True, conf=0.4, nms_iou=0.5)
    words = ["-c", str(file)]
    assert main(["predict", str(images / "val2017"), *words, "--conf", "0.4", "--nms", "0.5"]) == 0
    assert "suppression inside (scores from 0.4 on, IoU 0.5)" in capsys.readouterr().out
    for wrong in (["--conf", "0.3"], ["--conf", "0.5", "--nms", "0.6"]):
        assert main(["predict", str(images / "val2017"), *words, *wrong]) == 2
        assert "Give a --conf of 0.4 or more and an --nms of 0.5 or less" in capsys.readouterr().err
    assert main(["val", *words, "--data_dir", str(images), "--num_workers", "0"]) == 2
    assert "--conf of 0.4 or more" in capsys.readouterr().err
    assert main(["val", *words, "--data_dir", str(images), "--num_workers", "0", "--conf", "0.4", "--nms", "0.5"]) == 0


class Classifier(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))


class Transposed(torch.nn.Module):
    """Boxes as ultralytics' networks export them: ``[B, 4 + C, A]``."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(2)[:, :, :84].transpose(1, 2)


class FourChannels(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, :4].flatten(2)


class TwoInputs(torch.nn.Module):
    def forward(self, images: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)) * sizes


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the tracing exporter is the quick one
@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
@pytest.mark.parametrize(
    ("network", "shapes", "part"),
    [
        (Classifier(), [(1, 3, 64, 64)], r"gives \(1, 3\); expected boxes \[B, 84, 4\]"),
        (Transposed(), [(1, 3, 64, 64)], r"gives \(1, 84, 3\); expected"),
        (FourChannels(), [(1, 4, 64, 64)], r"takes \[1, 4, 64, 64\]"),
        (TwoInputs(), [(1, 3, 64, 64), (1, 3)], "has 2 inputs; expected one"),
    ],
    ids=["classifier", "transposed", "four channels", "two inputs"],
)
def test_foreign_networks_are_refused(
    network: torch.nn.Module, shapes: list[tuple[int, ...]], part: str, suffix: str, tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript")
    file = tmp_path / "a.onnx"
    torch.onnx.export(network, tuple(torch.zeros(shape) for shape in shapes), str(file), dynamo=False)
    if suffix == ".xml":
        library = pytest.importorskip("openvino")
        library.save_model(library.convert_model(str(file)), str(file.with_suffix(".xml")))
        file = file.with_suffix(".xml")
    else:
        pytest.importorskip("onnxruntime")
    with pytest.raises(ModelFileError, match=part):
        list(YOLOX(file).predict(np.zeros((8, 8, 3), np.uint8)))


def test_files_that_are_not_whole(checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    picture = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ModelFileError, match="does not exist"):
        YOLOX(tmp_path / "none.xml").predict(picture)
    (tmp_path / "a.xml").write_text("<html></html>")
    with pytest.raises(ModelFileError, match=r"a\.bin' does not exist"):
        YOLOX(tmp_path / "a.xml").predict(picture)
    (tmp_path / "a.bin").write_bytes(b"")
    with pytest.raises(ModelFileError, match="Unable to read the model"):
        YOLOX(tmp_path / "a.xml").predict(picture)
    with pytest.raises(UsageError, match="deployed model"):
        YOLOX(tmp_path / "a.xml").export(tmp_path / "b.onnx")
