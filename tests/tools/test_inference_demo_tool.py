from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from checkpoints import described
from labelled_images import NAMES, write_data
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from yolox.checkpoint import load_model
from yolox.config import apply_fields
from yolox.experiments import get_experiment
from yolox.inference.methods import METHODS, get_method
from yolox.inference.optimizer import InferenceOptimizer
from yolox.inference.search.latency import Latency
from yolox.inference.search.protocol import Status
from yolox.inference.search.results import MethodResult, OptimizationReport
from yolox.models.decoding import DecodedDetector
from yolox.structures import Size
from yolox.tools import demo
from yolox.tools.detection_metric import DetectionMetric
from yolox.tools.inference_demo import NOTHING_BETTER, main
from yolox.tools.inference_images import EvalImages, read_pictures
from yolox.tools.inference_report import draw_plot


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    experiment = apply_fields(get_experiment("yolox_nano"), {"num_classes": 3, "exp_name": "mine"})
    torch.save(described(experiment, NAMES), tmp_path / "model.pth")
    return [
        "-c",
        "model.pth",
        "--data_dir",
        str(write_data(tmp_path / "data", 3)),
        "--tsize",
        "64",
        "-b",
        "2",
        "--thread_num",
        "1",
    ]


@pytest.mark.processes
def test_table_files_artifact_and_demo(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = ["--json", "t.json", "--csv", "t.csv", "--markdown", "t.md", "--plot", "t.png", "--save", "best"]
    code = main([*words, "--methods", "onnxruntime_fp32", "--max_drop", "0.5", *files])
    shown = capsys.readouterr()
    assert code in (0, NOTHING_BETTER)
    assert "onnxruntime_fp32" in shown.err
    assert "no training images" in shown.out
    assert "AP of 3 images proves little" in shown.out
    table = json.loads((tmp_path / "t.json").read_text())
    assert [row["method"] for row in table["rows"]] == ["original", "onnxruntime_fp32"]
    for row in table["rows"]:
        needed = {"status", "reason", "latency_ms", "images_per_second", "speedup", "AP", "AP50", "size_mb"}
        assert needed | {"peak_memory_mb", "int8_share", "drop"} <= row.keys()
        assert row["status"] == "successful"
        assert row["AP"] is not None
    assert table["batch_size"] == 2
    assert table["machine"]["torch"] == torch.__version__
    assert len(list(csv.reader((tmp_path / "t.csv").read_text().splitlines()))) == 3
    assert "| onnxruntime_fp32 |" in (tmp_path / "t.md").read_text()
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")
    best = DecodedDetector(load_model("model.pth").detector)  # its code, if the original is the best
    model = InferenceOptimizer.load(tmp_path / "best", best)
    assert model.metadata["class_names"] == list(NAMES)
    assert model.metadata["input_size"] == [64, 64]
    picture = next((tmp_path / "data" / "val2017").iterdir())
    assert demo.main(["image", "--model", "best", "--path", str(picture)]) == 0


@pytest.mark.processes
def test_without_labels_nothing_is_called_accurate(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words[words.index("--data_dir") + 1] = str(write_data(tmp_path / "unlabelled", 3, labels=False))
    main([*words, "--methods", "original", "--json", "t.json"])
    shown = capsys.readouterr().out
    assert "no labels" in shown
    rows = json.loads((tmp_path / "t.json").read_text())["rows"]
    assert [(row["method"], row["AP"]) for row in rows] == [("original", None)]


@pytest.mark.processes
def test_data_found_by_default_may_have_other_classes(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``inference_demo -c yolox_nano.pth`` alone: the sample set's classes are not the model's."""
    monkeypatch.setenv("YOLOX_DATADIR", str(write_data(tmp_path / "other", 3, names=("dog", "elk", "fox"))))
    at = words.index("--data_dir")
    alone = [*words[:at], *words[at + 2 :]]
    main([*alone, "--methods", "onnxruntime_int8_qlinear", "--json", "t.json"])
    shown = capsys.readouterr().out
    (line,) = [line for line in shown.splitlines() if "To get AP" in line]
    assert "dog, elk, fox" in line
    assert "--data_dir" in line
    rows = json.loads((tmp_path / "t.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["original", "onnxruntime_int8_qlinear"]
    assert all(row["AP"] is None and row["latency_ms"] > 0 for row in rows)


def test_named_data_of_other_classes_is_refused(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words[words.index("--data_dir") + 1] = str(write_data(tmp_path / "other", 3, names=("dog", "elk", "fox")))
    assert main([*words, "--methods", "original"]) == 3
    message = capsys.readouterr().err
    assert "dog, elk, fox" in message
    assert "apple, bolt, crab" in message


def test_calibration_pictures_are_named(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert main([*words, "--methods", "original", "--calib", "empty"]) == 3
    assert "holds no readable picture" in capsys.readouterr().err


def test_own_pictures_calibrate(words: list[str], tmp_path: Path) -> None:
    """``--calib`` gives the images of calibration; without it the training images do."""
    from yolox.config import DataConfig
    from yolox.tools.inference_images import read_inference_images

    (tmp_path / "own").mkdir()
    cv2.imwrite(str(tmp_path / "own" / "a.png"), np.full((64, 64, 3), (10, 20, 30), np.uint8))
    data = DataConfig(data_dir=str(tmp_path / "data"))
    shutil.copytree(tmp_path / "data" / "val2017", tmp_path / "data" / "train2017")
    labels = tmp_path / "data" / "annotations"
    shutil.copy(labels / "instances_val2017.json", labels / "instances_train2017.json")
    loaded = load_model("model.pth")
    limits, file = (3, 2), tmp_path / "images.npy"
    own = read_inference_images(data, loaded, Size(64, 64), limits, file, calib=tmp_path / "own")
    (batch,) = own.calibration
    assert batch.shape == (1, 3, 64, 64)
    assert [batch[0, channel].min() for channel in range(3)] == [10, 20, 30]
    trained = read_inference_images(data, loaded, Size(64, 64), limits, file)
    assert sum(map(len, trained.calibration)) == 2


def test_pictures_are_read_in_order_and_letterboxed(tmp_path: Path) -> None:
    for number in (2, 1):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((32, 64, 3), 10 * number, np.uint8))
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "broken.png").write_bytes(b"nothing")
    images = read_pictures(tmp_path, Size(64, 64), 5)
    assert images.shape == (2, 3, 64, 64)
    assert images[:, 0, 0, 0].tolist() == [10, 20]
    assert images[0, 0, 63, 0] == 114


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--methods", "opnvino_int8"], "Did you mean 'openvino_int8'"),
        (["--accelerator", "openvin"], "Did you mean 'openvino'"),
        (["--precision", "int4"], "expected one of"),
        (["--plot", "t.txt"], "ends in .png"),
        (["--json", "nowhere/t.json"], "does not exist"),
        (["--max_dropp", "1"], "--max_drop"),
    ],
)
def test_mistakes_are_told_at_once(
    words: list[str], extra: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, *extra]) == 2
    assert message in capsys.readouterr().err


def test_no_checkpoint(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([]) == 2
    assert "no checkpoint given" in capsys.readouterr().err
    (tmp_path / "bad.pth").write_bytes(b"nothing")
    assert main(["-c", str(tmp_path / "bad.pth")]) == 4


def test_help_is_quick() -> None:
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "yolox.tools.inference_demo", "--help"], capture_output=True, text=True, check=True
    )
    assert "--max_drop" in done.stdout
    assert time.monotonic() - start < 5
    code = "import sys, yolox.tools.inference_demo; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_plot_takes_rows_without_accuracy(tmp_path: Path) -> None:
    row = MethodResult(get_method("original"), Status.SUCCESSFUL, latency=Latency((2.0, 3.0), 4))
    failed = replace(row, method=get_method("bf16"), status=Status.FAIL_TO_CONVERT, latency=None)
    draw_plot(OptimizationReport((row, failed), ("AP",)), row, tmp_path / "plot.svg")
    assert "<svg" in (tmp_path / "plot.svg").read_text()


def test_the_plot_turns_no_noise_into_mountains(tmp_path: Path) -> None:
    rows = [
        MethodResult(get_method(name), Status.SUCCESSFUL, latency=Latency((ms,), 1), metrics={"AP": ap})
        for name, ms, ap in (("original", 9.0, 0.34), ("bf16", 5.0, 0.341), ("jit_fp32", 4.0, 0.339))
    ]
    draw_plot(OptimizationReport(tuple(rows), ("AP",)), rows[0], tmp_path / "plot.svg")
    heights = [
        float(y) for y in re.findall(r'<use xlink:href="#m\w+" x="[\d.]+" y="([\d.]+)" style="fill', text_of(tmp_path))
    ]
    assert max(heights[:3]) - min(heights[:3]) < 12


def test_the_plot_names_every_row(tmp_path: Path) -> None:
    """Rows of one speed and accuracy have their names too, beside one another."""
    names = [method.name for method in METHODS if "ipex" not in method.name]
    rows = [
        MethodResult(get_method(name), Status.SUCCESSFUL, latency=Latency((5.0 + 0.01 * k,), 1), metrics={"AP": 0.34})
        for k, name in enumerate(names)
    ]
    draw_plot(OptimizationReport(tuple(rows), ("AP",)), rows[0], tmp_path / "plot.svg")
    written = set(re.findall(r"<!-- (\w+) -->", text_of(tmp_path)))
    assert len(names) > 15
    assert set(names) <= written


NEAR_ROWS = (
    "original 3104 0.340, channels_last 755 0.340, fp32_ipex 708 0.340, bf16 425 0.349, bf16_ipex 440 0.348, "
    "static_int8 660 0.335, jit_fp32 768 0.340, jit_fp32_ipex 898 0.340, jit_fp32_ipex_channels_last 587 0.340, "
    "jit_int8 645 0.340, inductor_fp32 637 0.340, inductor_bf16 415 0.348, inductor_int8 646 0.335, "
    "inductor_int8_bf16 567 0.337, openvino_fp32 437 0.340, openvino_bf16 211 0.339, openvino_int8 337 0.348, "
    "openvino_int8_bf16 247 0.340, native_int8 132 0.350, onnxruntime_fp32 450 0.340, onnxruntime_int8_qlinear 570 "
    "0.341, onnxruntime_int8_integer 785 0.349"
)
"""Name, milliseconds and AP of each row of a table of YOLOX-Nano."""


def test_no_line_to_a_name_passes_the_dot_of_another_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows lie so near to one another that some names are further away from them, at the end of a line."""
    drawn: list[Figure] = []
    save = Figure.savefig

    def record(figure: Figure, *words: Any, **options: Any) -> None:
        drawn.append(figure)
        save(figure, *words, **options)

    monkeypatch.setattr(Figure, "savefig", record)
    measured = [line.split() for line in NEAR_ROWS.split(", ")]
    points = [(float(ms), float(ap)) for _, ms, ap in measured]
    rows = [
        MethodResult(get_method(name), Status.SUCCESSFUL, latency=Latency((ms,), 64), metrics={"AP": ap})
        for (name, *_), (ms, ap) in zip(measured, points, strict=True)
    ]
    draw_plot(OptimizationReport(tuple(rows), ("AP",)), rows[0], tmp_path / "plot.svg")
    (axes,) = drawn[0].axes
    dots = axes.transData.transform(points)
    lines = [text for text in axes.texts if isinstance(text, Annotation) and text.arrow_patch is not None]
    assert len(lines) > 2
    for line in lines:
        start = axes.transData.transform(line.xy)
        along = start + np.linspace(0, 1, 200)[:, None] * np.multiply(line.xyann, drawn[0].dpi / 72)
        others = dots[np.linalg.norm(dots - start, axis=1) > 6]
        assert np.linalg.norm(along[:, None] - others, axis=2).min() > 4, line.xyann


def text_of(folder: Path) -> str:
    return (folder / "plot.svg").read_text()


def test_ap_of_blocks_is_ap_without_their_images(tmp_path: Path) -> None:
    images = np.zeros((3, 3, 64, 64), np.uint8)
    np.save(tmp_path / "images.npy", images)
    truth = {
        "images": [{"id": number} for number in (1, 2, 3)],
        "categories": [{"id": 1, "name": "apple"}],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 1, "bbox": [8, 8, 32, 32], "area": 1024, "iscrowd": 0}
            for n in (1, 2, 3)
        ],
    }
    sizes = np.full((3, 2), 64)
    evaluated = EvalImages(tmp_path / "images.npy", np.array([1, 2, 3]), sizes, truth, "")

    def finds_all_but_the_last(batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        boxes = torch.tensor([[[8.0, 8.0, 40.0, 40.0]]]).repeat(len(batch), 1, 1)
        boxes[-1] = 0
        return boxes, torch.full((len(batch), 1, 1), 0.9)

    score = DetectionMetric(evaluated, 3, 0.01, 0.65)(finds_all_but_the_last)
    blocks = list(score.leave_one_out())
    assert len(blocks) == 3
    assert blocks[2] == pytest.approx(1.0), "without the image that is missed"
    assert blocks[0] == blocks[1] < 0.6
