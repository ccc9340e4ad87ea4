"""The loss of a box against the box it should be."""

from __future__ import annotations

from torch import Tensor

from yolox.boxes import paired_iou_cxcywh


def iou_loss(boxes_cxcywh: Tensor, targets_cxcywh: Tensor) -> Tensor:
    """Return 1 - IoU^2 of each box and its target, ``[P, 4]`` and ``[P, 4]`` to ``[P]``."""
    return 1.0 - paired_iou_cxcywh(boxes_cxcywh, targets_cxcywh) ** 2
