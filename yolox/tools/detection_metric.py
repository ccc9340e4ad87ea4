"""AP as the inference engine wants it: a function of anything that maps images to boxes and scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from yolox.inference.search.scorer import Score
from yolox.structures import Detections
from yolox.tools.inference_images import EvalImages

BLOCKS = 10
"""Blocks of images for the interval of a drop; AP is computed once more for each."""


@dataclass(frozen=True)
class DetectionMetric:
    """``metric(model)``: AP and AP50 of anything that maps float images to boxes and scores.

    Args:
        images: The evaluation images.
        batch_size: Images per call.
        confidence: Lowest score to keep.
        nms_iou: Threshold of the suppression.
    """

    images: EvalImages
    batch_size: int
    confidence: float
    nms_iou: float

    def __call__(self, model: Callable[..., Any]) -> Score:
        """Return ``AP`` (0.50:0.95) and ``AP50``, 0...1, and AP without each of up to ten blocks of the images."""
        import torch

        from yolox.evaluation.loop import evaluate

        def predict(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            boxes, scores = model(images.float())
            return boxes, scores

        result = evaluate(
            predict,
            self.images.batches(self.batch_size),
            self.images.ground_truth,
            confidence=self.confidence,
            nms_iou=self.nms_iou,
        )
        values = {name: result.metrics[name] for name in ("AP", "AP50")}
        return Score(values, partial(_without_each_block, self.images.ground_truth, result.detections))


def _without_each_block(truth: Mapping[str, Any], detections: Mapping[int, Detections]) -> list[float]:
    """Return AP without each block of images, or nothing where too few images have labels."""
    from yolox.evaluation.coco_metric import coco_metric
    from yolox.evaluation.loop import only_images

    ids = sorted(image["id"] for image in truth["images"])
    count = min(BLOCKS, len(ids))
    found = []
    for block in range(count):
        left = {number for position, number in enumerate(ids) if position % count != block}
        seen = {number: boxes for number, boxes in detections.items() if number in left}
        found.append(coco_metric(only_images(truth, left), seen).metrics["AP"] if left else math.nan)
    return [] if any(math.isnan(value) for value in found) else found
