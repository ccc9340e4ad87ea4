"""Checkpoints as our training writes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from yolox.config import Experiment, experiment_to_dict
from yolox.models.detector import Detector, build_detector


def described(experiment: Experiment, names: Sequence[str], detector: Detector | None = None) -> dict[str, Any]:
    """Return a checkpoint that names its network and its classes, with new weights unless a detector is given."""
    if detector is None:
        detector = build_detector(experiment.model)
    return {
        "format": 1,
        "model": detector.state_dict(),
        "experiment": experiment_to_dict(experiment),
        "class_names": list(names),
    }
