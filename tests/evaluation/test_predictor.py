from __future__ import annotations

import numpy as np
import pytest
import torch

from yolox.evaluation.loop import build_predict
from yolox.experiments import get_experiment
from yolox.inference.convert.folding import fold_normalisations
from yolox.models.decoding import DecodedDetector
from yolox.models.detector import Detector, build_detector


@pytest.fixture(scope="module")
def detector() -> Detector:
    """A network whose normalisations have something to fold."""
    torch.manual_seed(0)
    detector = build_detector(get_experiment("yolox_nano").model).eval()
    generator = torch.Generator().manual_seed(1)
    for module in detector.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
    return detector


IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 96, 128), dtype=np.uint8))


def test_folded_results_are_the_same_and_the_detector_stays(detector: Detector) -> None:
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    with torch.no_grad():
        boxes, scores = DecodedDetector(detector)(IMAGES)
    found_boxes, found_scores = build_predict(detector)(IMAGES)
    torch.testing.assert_close(found_boxes, boxes, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found_scores, scores, rtol=1e-4, atol=1e-6)
    assert all(torch.equal(value, before[key]) for key, value in detector.state_dict().items())
    folded = fold_normalisations(DecodedDetector(detector).eval(), (torch.zeros(1, 3, 64, 64),))
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())


def test_bf16_is_near_and_its_boxes_are_float32(detector: Detector) -> None:
    boxes, scores = build_predict(detector)(IMAGES)
    rough_boxes, rough_scores = build_predict(detector, "bf16")(IMAGES)
    assert rough_boxes.dtype == rough_scores.dtype == torch.float32
    assert (rough_boxes - boxes).abs().mean() < 0.5
    assert (rough_scores - scores).abs().max() < 0.02
    assert not torch.equal(rough_boxes, boxes)
    assert (rough_boxes != rough_boxes.bfloat16()).any()  # decoded after the network, not rounded with it
