"""Rows of class predictions follow their names."""

from __future__ import annotations

from dataclasses import replace

import torch

from yolox.experiments import EXPERIMENTS
from yolox.models.detector import Detector, build_detector
from yolox.recipe.class_rows import carry_classes


def nano(num_classes: int) -> Detector:
    return build_detector(replace(EXPERIMENTS["yolox_nano"].model, num_classes=num_classes))


def test_classes_are_carried_over_by_name() -> None:
    """Rows follow names, whatever their order, number and spelling; a class without a partner keeps its fresh row."""
    theirs, mine = ("person", "Traffic_Light", "dog"), ("traffic light", "zebra", "person")
    source, target = nano(3), nano(3)
    weights, carried = carry_classes(target, source.state_dict(), theirs, mine)
    assert carried == ("traffic light", "person")
    for level in range(3):
        for part in ("weight", "bias"):
            key = f"head.cls_preds.{level}.{part}"
            old, new, fresh = source.state_dict()[key], weights[key], target.state_dict()[key]
            assert torch.equal(new[0], old[1])
            assert torch.equal(new[2], old[0])
            assert torch.equal(new[1], fresh[1])
    assert torch.equal(weights["head.stems.0.conv.weight"], source.state_dict()["head.stems.0.conv.weight"])
