"""The ncnn files of the export, run by ncnn itself and compared with the network."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from yolox.checkpoint import load_model
from yolox.data.image_files import read_file_size, read_image
from yolox.data.image_ops import letterbox
from yolox.evaluation.postprocess import postprocess
from yolox.experiments import get_experiment
from yolox.models.decoding import OUTPUT_LAYOUTS, DecodedDetector
from yolox.models.detector import build_detector
from yolox.structures import OUTPUT_DESCRIPTIONS, Size
from yolox.tools.export import main


@pytest.fixture(scope="module")
def one_class(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network without training of a single class."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("ncnn") / "model.pth"
    torch.save(build_detector(replace(get_experiment("yolox_nano").model, num_classes=1)).state_dict(), path)
    return path


def run_ncnn(path: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs by name of one image ``[1, 3, H, W]``; they have no axis of the batch."""
    ncnn: Any = pytest.importorskip("ncnn")
    image = np.ascontiguousarray(images[0])  # ncnn does not keep it alive
    with ncnn.Net() as net:
        net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = net.opt.use_bf16_storage = False
        assert net.load_param(str(path)) == 0
        assert net.load_model(str(path.with_suffix(".bin"))) == 0
        assert net.input_names() == ["images"]
        with net.create_extractor() as extractor:
            extractor.input("images", ncnn.Mat(image))
            return {name: np.array(extractor.extract(name)[1]) for name in net.output_names()}


@pytest.mark.backends
@pytest.mark.realdata
def test_ncnn_finds_what_pytorch_finds_in_a_photograph(nano_weights: Path, coco_mini: Path, tmp_path: Path) -> None:
    pytest.importorskip("pnnx")
    path = tmp_path / "a.ncnn.param"
    words = ["-c", str(nano_weights), "-n", "yolox_nano", "--output-name", str(path), "--two_outputs"]
    assert main(words) == 0
    detector = DecodedDetector(load_model(str(nano_weights)).detector).eval()
    photographs = sorted((coco_mini / "val2017").glob("*.jpg"))[:4]
    assert len(photographs) == 4
    for photograph in photographs:
        size = read_file_size(photograph)
        assert size is not None
        image = read_image(photograph, size)
        assert image is not None
        given = letterbox(image, Size(416, 416))[0].transpose(2, 0, 1)[None].astype(np.float32)
        with torch.no_grad():
            theirs = [output.numpy() for output in detector(torch.from_numpy(given))]
        found = run_ncnn(path, given)
        assert set(found) == {"boxes", "scores"}
        ours = [found["boxes"][None], found["scores"][None]]
        np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-3, atol=0.1)
        np.testing.assert_allclose(ours[1], theirs[1], atol=1e-3)
        (one,), (two,) = (postprocess(*outputs, confidence=0.25, nms_iou=0.45) for outputs in (ours, theirs))
        assert len(one.scores) == len(two.scores) > 0
        np.testing.assert_array_equal(one.labels, two.labels)
        np.testing.assert_allclose(one.boxes_xyxy, two.boxes_xyxy, atol=0.1)


@pytest.mark.backends
@pytest.mark.parametrize(("options", "layout"), [([], "grid"), (["--decode_in_inference"], "pixels")])
def test_one_output_named_by_the_user(one_class: Path, tmp_path: Path, options: list[str], layout: str) -> None:
    pytest.importorskip("pnnx")
    path = tmp_path / "a.ncnn.param"
    words = ["-c", str(one_class), "--output-name", str(path), "test_size=64,96", "--output", "found", *options]
    assert main(words) == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.ncnn.bin", "a.ncnn.metadata.json", "a.ncnn.param"]
    given = np.random.default_rng(0).uniform(0, 255, (1, 3, 64, 96)).astype(np.float32)
    with torch.no_grad():
        expected = DecodedDetector(load_model(str(one_class)).detector, OUTPUT_LAYOUTS[layout].output).eval()(
            torch.from_numpy(given)
        )
    np.testing.assert_allclose(run_ncnn(path, given)["found"], expected[0].numpy(), rtol=1e-3, atol=1e-2)
    told = json.loads(path.with_suffix(".metadata.json").read_text())
    assert told["class_names"] == ["class 0"]
    assert told["input_size"] == [64, 96]
    assert told["preprocessing"]["channels"] == "BGR"
    assert told["outputs"] == OUTPUT_DESCRIPTIONS[layout]


def test_without_pnnx(
    one_class: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pnnx", None)
    assert main(["-c", str(one_class), "--output-name", str(tmp_path / "a.param")]) == 5
    assert "pnnx is not installed. Install it with: pip install 'yolox-cpu[ncnn]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("written", "there"), [("a.param", "a.xml"), ("a.xml", "a.param")])
def test_the_weights_of_another_format_are_not_replaced(
    one_class: Path, tmp_path: Path, written: str, there: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pnnx")
    pytest.importorskip("openvino")
    (tmp_path / there).write_text("a graph")
    (tmp_path / "a.bin").write_text("its weights")
    assert main(["-c", str(one_class), "--output-name", str(tmp_path / written), "--tsize", "64"]) == 2
    assert f"'{tmp_path / there}' has its weights there already" in capsys.readouterr().err
    assert (tmp_path / "a.bin").read_text() == "its weights"
    assert len(list(tmp_path.iterdir())) == 2


def test_no_file_takes_the_place_of_the_checkpoint(
    one_class: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pnnx")
    given = tmp_path / "a.bin"
    given.write_bytes(one_class.read_bytes())
    assert main(["-c", str(given), "-n", "yolox_nano", "--output-name", str(tmp_path / "a.param")]) == 2
    assert "a.bin" in capsys.readouterr().err
    assert given.read_bytes() == one_class.read_bytes()


class _Spectrum(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.fft.rfft2(images).abs()


@pytest.mark.backends
def test_an_operator_that_ncnn_lacks(tmp_path: Path) -> None:
    pytest.importorskip("pnnx")
    from yolox.errors import YoloxError
    from yolox.inference.convert.deploy import Deployment, write_deployment

    with pytest.raises(YoloxError, match="ncnn has no layer for"):
        write_deployment(_Spectrum(), torch.zeros(1, 3, 8, 8), tmp_path / "a.param", Deployment("ncnn"))
    assert not list(tmp_path.iterdir())
