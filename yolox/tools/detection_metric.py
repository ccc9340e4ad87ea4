"""AP as the inference engine wants it: a function of anything that maps images to boxes and scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from yolox.tools.inference_images import EvalImages

__all__ = ["DetectionMetric"]


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

    def __call__(self, model: Callable[..., Any]) -> dict[str, float]:
        """Return ``AP`` (0.50:0.95) and ``AP50``, 0...1."""
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
        return {name: result.metrics[name] for name in ("AP", "AP50")}
