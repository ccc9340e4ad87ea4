"""Every benchmark runs with tiny settings and writes the figures it promises; no figure is checked."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import (
    data_pipeline,
    evaluation,
    fine_tuning,
    inference_methods,
    pictures_to_boxes,
    roofline,
    scaling,
    train_throughput,
    versions,
    wheel,
)
from benchmarks.protocol import native_precisions

SUMMARY = {"median", "p10", "p90", "count"}
MACHINE = {"model_name", "usable_cores", "isa", "libraries", "malloc", "allocator_of_ours", "source"}
Main = Callable[[Sequence[str]], int]


def run(main: Main, name: str, part: str, folder: Path) -> list[dict[str, Any]]:
    assert main(["--quick", "--part", part, "--out", str(folder)]) == 0
    content = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    assert content["benchmark"] == name
    found = content["parts"][part]
    assert found["machine"].keys() >= MACHINE
    text = (folder / f"{name}.md").read_text(encoding="utf-8")
    assert f"## {part}" in text
    assert "## Machine" in text
    rows: list[dict[str, Any]] = found["rows"]
    return rows


@pytest.mark.parametrize(
    ("main", "name"),
    [
        (train_throughput.main, "train_throughput"),
        (data_pipeline.main, "data_pipeline"),
        (inference_methods.main, "inference_methods"),
        (scaling.main, "scaling"),
        (evaluation.main, "evaluation"),
        (fine_tuning.main, "fine_tuning"),
        (pictures_to_boxes.main, "pictures_to_boxes"),
    ],
)
def test_help_names_the_parts(main: Main, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"python -m benchmarks.{name}" in text
    assert "parts:" in text


@pytest.mark.processes
def test_wheel(tmp_path: Path) -> None:
    def main(words: Sequence[str]) -> int:
        return wheel.main([sys.executable, *words])

    for part in ("training", "native_int8"):
        rows = run(main, "wheel", part, tmp_path)
        assert [row["side"] for row in rows] == ["checkout", "wheel"]
        assert all(row["ms"]["median"] > 0 for row in rows)


def test_roofline_counts_every_product(tmp_path: Path) -> None:
    import torch
    from torch import nn

    from yolox.experiments import get_experiment
    from yolox.models.detector import build_detector

    products = 0

    def count(layer: nn.Conv2d, _: object, output: torch.Tensor) -> None:
        nonlocal products
        products += output[0, 0].numel() * layer.weight.numel()

    detector = build_detector(get_experiment("yolox_nano").model).eval()
    for layer in detector.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(count)  # type: ignore[arg-type]
    detector(torch.zeros(1, 3, 64, 64))
    *rows, whole = run(roofline.main, "roofline", "int8-nano", tmp_path)
    assert whole["million_products"] == pytest.approx(products / 1e6, rel=1e-3)
    assert sum(row["million_products"] for row in rows) == pytest.approx(whole["million_products"], rel=1e-3)
    assert sum(row["share"] for row in rows) == pytest.approx(1, rel=1e-3)


@pytest.mark.skipif("bf16" not in native_precisions(), reason="no bf16 arithmetic")
def test_roofline_of_training_counts_both_directions(tmp_path: Path) -> None:
    *rows, whole = run(roofline.main, "roofline", "bf16-training-nano", tmp_path)
    products = {row["layers"]: row["million_products"] for row in rows if "convolution" in row["layers"]}
    assert products["6x6 convolution forward"] == pytest.approx(2 * 16 * 32 * 32 * 108 / 1e6, rel=1e-3)
    for kind, forward in products.items():
        if "forward" in kind and not kind.startswith("6x6"):
            assert products[kind.replace("forward", "backward")] == pytest.approx(2 * forward, rel=1e-3)
    assert whole["million_products"] == pytest.approx(sum(products.values()), rel=1e-3)
    assert sum(row["share"] for row in rows) == pytest.approx(1, rel=0.01)


@pytest.mark.processes
def test_versions(tmp_path: Path) -> None:
    def main(words: Sequence[str]) -> int:
        return versions.main([f"same={sys.executable}", *words])

    for part in ("training", "onnxruntime_fp32"):
        rows = run(main, "versions", part, tmp_path)
        assert [row["side"] for row in rows] == ["tested", "same"]
        assert rows[0]["torch"] == rows[1]["torch"]
        assert all(row["ms"]["median"] > 0 for row in rows)


@pytest.mark.processes
def test_train_throughput(tmp_path: Path) -> None:
    rows = run(train_throughput.main, "train_throughput", "nano-b16", tmp_path)
    each = [f"{kind} {name}" for kind in ("tuned", "ours") for name in native_precisions()]
    assert [row["side"] for row in rows] == ["stock fp32", *each]
    assert all(bool(row["times_tuned"]) == row["side"].startswith("ours") for row in rows)
    for row in rows:
        assert row["images_per_second"].keys() == row["seconds_per_step"].keys() == SUMMARY
        assert row["peak_memory_mb"] > 0
        assert row["times_stock"] > 0
        assert sum(row["share_of_time"].values()) == pytest.approx(1, abs=0.01)
        groups = row["share_of_time"].keys()
        assert "loss and assignment" in groups
        assert {name.endswith(" backward") for name in groups if name.startswith("convolution")} == {True, False}


@pytest.mark.processes
def test_data_pipeline(tmp_path: Path) -> None:
    rows = run(data_pipeline.main, "data_pipeline", "one-core-416", tmp_path)
    assert {row["stage"] for row in rows} == {"read", "letterbox", "mosaic"}
    assert {row["side"] for row in rows} == {"plain OpenCV", "ours", "ours, reduced decode", "ours, cached"}
    assert all(row["images_per_second"].keys() == SUMMARY and row["times_plain"] > 0 for row in rows)
    rows = run(data_pipeline.main, "data_pipeline", "training-nano", tmp_path)
    assert [row["side"] for row in rows] == ["memory", "files"]
    assert rows[0]["share"] == 1
    parts = json.loads((tmp_path / "data_pipeline.json").read_text(encoding="utf-8"))["parts"]
    assert list(parts) == ["one-core-416", "training-nano"], "a later run keeps the parts of an earlier one"


@pytest.mark.processes
def test_inference_methods(tmp_path: Path) -> None:
    rows = run(inference_methods.main, "inference_methods", "nano-b1", tmp_path)
    assert [row["method"] for row in rows] == ["original", "fp32_channels_last"]
    assert all(row["status"] == "successful" and row["milliseconds"] > 0 for row in rows)


@pytest.mark.processes
def test_scaling_of_one_setting(tmp_path: Path) -> None:
    rows = run(scaling.main, "scaling", "batch", tmp_path)
    assert [row["batch_size"] for row in rows] == [1, 2]
    assert all(row["ms_per_image"].keys() == SUMMARY for row in rows)


@pytest.mark.processes
def test_scaling_over_processes(tmp_path: Path) -> None:
    rows = run(scaling.main, "scaling", "processes", tmp_path)
    assert [row["side"] for row in rows[:3]] == ["1 process", "2 processes", "1 process, 1 core"]
    assert all("projected" in row["side"] for row in rows[3:])


def test_the_index_stays_small(tmp_path: Path) -> None:
    rows = run(scaling.main, "scaling", "index", tmp_path)
    assert all(row["bytes_per_image"] < 1000 for row in rows)


def test_evaluation_agrees_with_pycocotools(tmp_path: Path) -> None:
    rows = run(evaluation.main, "evaluation", "coco", tmp_path)
    assert rows[0]["AP"] == pytest.approx(rows[1]["AP"], abs=1e-9)
    assert 0 < rows[0]["AP"] < 1


@pytest.mark.processes
def test_no_tool_imports_a_heavy_library_to_show_its_help(tmp_path: Path) -> None:
    rows = run(evaluation.main, "evaluation", "start-up", tmp_path)
    tools = {row["tool"]: row["heavy_imports"] for row in rows if not row["tool"].startswith("(")}
    assert tools.keys() >= {"train", "eval", "demo", "inference_demo", "export"}
    assert set(tools.values()) == {"–"}


@pytest.mark.filterwarnings("ignore::UserWarning:pytorch_lightning", "ignore::FutureWarning:pytorch_lightning")
def test_fine_tuning(tmp_path: Path) -> None:
    (row,) = run(fine_tuning.main, "fine_tuning", "40-images-3-classes", tmp_path)
    assert (row["precision"], row["epochs"]) == ("32", 1)
    assert row["AP"].keys() == {"0", "1"}
    assert 0 <= row["lowest"] <= row["best"] <= 1
