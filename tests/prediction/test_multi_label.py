"""Several classes a box, from the loops of prediction and evaluation."""

from __future__ import annotations

import numpy as np
import torch

from yolox.evaluation.loop import predict_share
from yolox.prediction.models import Predictor
from yolox.prediction.run import Thresholds, predict
from yolox.prediction.sources import Sources
from yolox.structures import Batch, Size, Targets

BOXES = np.array([[[0, 0, 10, 10], [20, 20, 30, 30]]], np.float32)
SCORES = np.array([[[0.9, 0.6], [0.2, 0.7]]], np.float32)


def test_prediction() -> None:
    network = Predictor(lambda _: (BOXES, SCORES), Size(32, 32), ("apple", "bolt"), "a test", "test", "none")
    picture = np.zeros((32, 32, 3), np.uint8)
    found = {}
    for multi_label in (False, True):
        (result,) = predict(network, Sources(picture), Thresholds(0.5, 0.45, multi_label=multi_label))
        found[multi_label] = result.boxes.names
    assert found == {False: ("apple", "bolt"), True: ("apple", "bolt", "bolt")}


def test_evaluation() -> None:
    nothing = Targets(torch.zeros(1, 0, 4), torch.zeros(1, 0, dtype=torch.int64), torch.zeros(1, 0, dtype=torch.bool))
    sizes = torch.tensor([[32, 32]])
    batch = Batch(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), nothing, torch.tensor([7]), sizes, torch.tensor([0]))

    def network(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy(BOXES), torch.from_numpy(SCORES)

    counts = []
    for multi_label in (False, True):
        share = predict_share(network, [batch], confidence=0.5, nms_iou=0.65, multi_label=multi_label)
        counts.append(share.detections[7].labels.tolist())
    assert counts == [[0, 1], [0, 1, 1]]
