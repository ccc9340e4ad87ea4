"""Loss terms and gradients of a network with drawn weights against recorded figures, in every clone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_weights import golden_weights

from yolox.experiments import get_experiment
from yolox.losses.detection_loss import detection_loss
from yolox.models.detector import build_detector
from yolox.structures import Targets

GOLDEN = json.loads((Path(__file__).resolve().parents[1] / "golden" / "loss.json").read_text())


def _targets() -> Targets:
    """Five objects in the first image and three in the second, of 96 x 160 pixels."""
    rng = np.random.default_rng(2)
    sides, centres = rng.uniform(12, 60, (2, 5, 2)), rng.uniform(20, 76, (2, 5, 2)) * [1.6, 1.0]
    boxes = torch.from_numpy(np.concatenate((centres, sides), axis=-1)).float()
    valid = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()
    return Targets(boxes, torch.from_numpy(rng.integers(0, 80, (2, 5))), valid)


@pytest.mark.parametrize("use_l1", [False, True])
def test_terms_and_gradients_are_the_recorded_ones(use_l1: bool) -> None:
    golden = GOLDEN["l1" if use_l1 else "no_l1"]
    detector = build_detector(get_experiment("yolox_nano").model)
    detector.load_state_dict(golden_weights(detector))
    images = torch.from_numpy(np.random.default_rng(1).uniform(0, 255, (2, 3, 96, 160)).astype(np.float32))
    terms = detection_loss(detector.train()(images), _targets(), use_l1=use_l1)
    for name, value in golden["terms"].items():
        assert float(getattr(terms, name).detach()) == pytest.approx(value, rel=1e-5, abs=1e-6), name
    terms.total.backward()
    norms = {
        name: float(value.grad.double().norm()) for name, value in detector.named_parameters() if value.grad is not None
    }
    assert float(np.linalg.norm(list(norms.values()))) == pytest.approx(golden["gradient_norm"], rel=5e-4)
    for name, norm in golden["gradient_norms"].items():
        assert norms[name] == pytest.approx(norm, rel=5e-4), name
