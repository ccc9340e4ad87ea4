"""Loss, gradients and four training steps of YOLOX-Nano against figures of the official implementation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from yolox.experiments import get_experiment
from yolox.kernels.training.acceleration import accelerate
from yolox.losses.detection_loss import detection_loss
from yolox.models.detector import Detector, build_detector
from yolox.structures import LossTerms, Targets

pytestmark = pytest.mark.realdata
SIDE = 416
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def golden(golden_dir: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((golden_dir / "loss.json").read_text())
    return loaded


@pytest.fixture(scope="module")
def images(golden: dict[str, Any], coco_mini: Path) -> Tensor:
    """The four images, letterboxed as the labels are."""
    batch = np.full((4, SIDE, SIDE, 3), 114, dtype=np.uint8)
    for canvas, image_id in zip(batch, golden["image_ids"], strict=True):
        image = cv2.imread(str(coco_mini / "train2017" / f"{image_id:012d}.jpg"))
        assert image is not None
        ratio = min(SIDE / image.shape[0], SIDE / image.shape[1])
        height, width = int(image.shape[0] * ratio), int(image.shape[1] * ratio)
        canvas[:height, :width] = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return torch.from_numpy(batch).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def targets(golden_dir: Path) -> Targets:
    with np.load(golden_dir / "loss_labels.npz") as archive:
        labels = torch.from_numpy(archive[archive.files[0]]).float()
    return Targets(labels[..., 1:], labels[..., 0].long(), labels.sum(dim=-1) > 0)


@pytest.fixture
def detector(nano_weights: Path) -> Detector:
    model = build_detector(get_experiment("yolox_nano").model)
    model.load_state_dict(torch.load(nano_weights, weights_only=True, map_location="cpu")["model"])
    return model.train()


def _check_terms(terms: LossTerms, golden: dict[str, Any]) -> None:
    names = {"total": "total_loss", "iou": "iou_loss", "objectness": "conf_loss", "classes": "cls_loss"}
    names |= {"l1": "l1_loss", "num_foreground": "num_fg"}
    for ours, official in names.items():
        value = float(getattr(terms, ours).detach())
        assert value == pytest.approx(golden[official], rel=TOLERANCE, abs=1e-6), ours


def test_terms_of_the_network_as_it_is(
    detector: Detector, images: Tensor, targets: Targets, golden: dict[str, Any]
) -> None:
    with torch.no_grad():
        _check_terms(detection_loss(detector(images), targets, use_l1=True), golden["l1"])


@pytest.mark.parametrize("use_l1", [False, True])
@pytest.mark.parametrize("accelerated", [False, True])
def test_terms_and_gradients(
    detector: Detector, images: Tensor, targets: Targets, golden: dict[str, Any], use_l1: bool, accelerated: bool
) -> None:
    expected = golden["l1" if use_l1 else "no_l1"]
    if accelerated:
        accelerate(detector.to(memory_format=torch.channels_last))
        images = images.to(memory_format=torch.channels_last)
    terms = detection_loss(detector(images), targets, use_l1=use_l1)
    _check_terms(terms, expected)
    terms.total.backward()
    gradients = {name: value.grad for name, value in detector.named_parameters() if value.grad is not None}
    total = torch.stack([gradient.double().norm() for gradient in gradients.values()]).norm()
    assert float(total) == pytest.approx(expected["grad_norm_total"], rel=TOLERANCE)
    for name, norm in expected["grad_norm"].items():
        assert float(gradients[name].double().norm()) == pytest.approx(norm, rel=10 * TOLERANCE), name


def test_four_training_steps(
    detector: Detector,
    images: Tensor,
    targets: Targets,
    golden: dict[str, Any],
) -> None:
    norms = [module for module in detector.modules() if isinstance(module, nn.BatchNorm2d)]
    undecayed = {id(parameter) for module in norms for parameter in module.parameters()}
    undecayed |= {id(value) for name, value in detector.named_parameters() if name.endswith("bias")}
    groups = [
        {"params": [p for p in detector.parameters() if id(p) in undecayed], "weight_decay": 0.0},
        {"params": [p for p in detector.parameters() if id(p) not in undecayed], "weight_decay": 5e-4},
    ]
    optimizer = torch.optim.SGD(groups, lr=1e-3, momentum=0.9, nesterov=True)
    accelerate(detector)
    for expected in golden["steps"]:
        terms = detection_loss(detector(images), targets, use_l1=False)
        _check_terms(terms, expected)
        optimizer.zero_grad()
        terms.total.backward()
        optimizer.step()
    state = detector.state_dict()
    for name, (mean, std) in golden["after_steps"].items():
        value = state[name].double()
        assert float(value.mean()) == pytest.approx(mean, rel=10 * TOLERANCE, abs=1e-6), name
        assert float(value.std()) == pytest.approx(std, rel=10 * TOLERANCE), name
