"""The seven networks against figures computed with the official implementation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_weights import golden_weights

from yolox.experiments import EXPERIMENTS
from yolox.models.decoding import official_output
from yolox.models.detector import build_detector, summarize
from yolox.structures import Size

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_state_dict_keys_and_shapes_are_the_official_ones(name: str) -> None:
    golden = json.loads((GOLDEN / "state_dict_keys.json").read_text())[name]
    with torch.device("meta"):
        state = build_detector(EXPERIMENTS[name].model).state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == golden
    assert list(state) == list(golden), "the order decides the parameter order of an official optimizer state"


@pytest.mark.parametrize("name", ["yolox_nano", "yolox_tiny", "yolox_s", "yolox_m", "yolox_l", "yolox_x", "yolov3"])
def test_forward_equals_the_official_network(name: str) -> None:
    golden = json.loads((GOLDEN / "forward.json").read_text())[name]
    with torch.device("meta"):
        detector = build_detector(EXPERIMENTS[name].model).eval()
    detector.load_state_dict(golden_weights(detector), assign=True)
    images = np.random.default_rng(1).uniform(0, 255, (2, 3, 96, 160)).astype(np.float32)
    with torch.inference_mode():
        output = official_output(detector(torch.from_numpy(images))).double().numpy()
    assert list(output.shape) == golden["shape"]
    figures = {
        "mean": output.mean(),
        "std": output.std(),
        "mean_abs_by_column": np.abs(output).mean(axis=(0, 1))[:8],
        "first_anchor": output[0, 0, :8],
        "middle_anchor": output[1, output.shape[1] // 2, :8],
        "last_anchor": output[1, -1, :8],
    }
    for key, value in figures.items():
        np.testing.assert_allclose(value, golden[key], rtol=1e-4, atol=1e-4, err_msg=key)


@pytest.mark.parametrize(
    ("name", "num_parameters", "gflops"),
    [
        ("yolox_nano", 912_159, 1.08),
        ("yolox_tiny", 5_055_855, 6.45),
        ("yolox_s", 8_968_255, 26.8),
        ("yolox_m", 25_326_495, 73.8),
        ("yolox_l", 54_208_895, 155.6),
        ("yolox_x", 99_071_455, 281.9),
        ("yolov3", 63_724_767, 185.3),
    ],
)
def test_size_in_numbers_is_the_published_one(name: str, num_parameters: int, gflops: float) -> None:
    experiment = EXPERIMENTS[name]
    summary = summarize(experiment.model, Size(*experiment.eval.test_size))
    assert summary.num_parameters == num_parameters
    # The published figures also count the arithmetic of batch normalisation, which inference folds away.
    assert gflops * 0.96 < summary.gflops <= gflops * 1.002
