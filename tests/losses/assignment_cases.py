"""Random objects and predictions on which assignment and loss are tested."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from yolox.boxes import anchor_grid, cxcywh_to_xyxy
from yolox.structures import Predictions, Size, Targets

STRIDES = (8, 16, 32)
SIZE = Size(96, 160)
LEVELS = tuple(Size(SIZE.height // stride, SIZE.width // stride) for stride in STRIDES)
NUM_ANCHORS = sum(size.height * size.width for size in LEVELS)


def map_tensors(change: Callable[[Tensor], Tensor], predictions: Predictions) -> Predictions:
    """Return the predictions with each tensor changed."""
    boxes, objectness, classes = (change(value) for value in predictions[:3])
    return predictions._replace(boxes=boxes, objectness=objectness, classes=classes)


def make_targets(seed: int, num_images: int = 3, num_boxes: int = 9, num_classes: int = 5) -> Targets:
    """Objects inside the image, overlapping, a random number of them in every image."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor([SIZE.width, SIZE.height] * 2)
    boxes = torch.rand(num_images, num_boxes, 4, generator=generator) * scale * 0.98 + 0.5
    boxes[..., 2:] = boxes[..., 2:] * 0.6 + 4
    labels = torch.randint(0, num_classes, (num_images, num_boxes), generator=generator)
    count = torch.randint(0, num_boxes + 1, (num_images, 1), generator=generator)
    return Targets(boxes, labels, torch.arange(num_boxes) < count)


def make_predictions(seed: int, targets: Targets, num_classes: int = 5) -> Predictions:
    """Half of the anchor points predict some object of their image roughly, the others anything."""
    generator = torch.Generator().manual_seed(seed + 1000)
    num_images, num_boxes = targets.labels.shape
    shape = (num_images, NUM_ANCHORS)
    raw = torch.randn(*shape, 4, generator=generator)
    grid, stride = anchor_grid(LEVELS, STRIDES, raw)
    distance = (targets.boxes_cxcywh[:, None, :, :2] - ((grid + 0.5) * stride)[None, :, None]).norm(dim=-1)
    distance = distance + 20 * torch.rand(*shape, num_boxes, generator=generator)
    nearest = distance.argmin(dim=-1)
    boxes = targets.boxes_cxcywh.gather(1, nearest[..., None].expand(-1, -1, 4))
    close = torch.cat((boxes[..., :2] / stride - grid, (boxes[..., 2:] / stride).log()), dim=-1)
    fits = torch.rand(*shape, 1, generator=generator) < 0.5
    raw = torch.where(fits, close + 0.2 * raw, raw)
    objectness = torch.randn(*shape, 1, generator=generator)
    return Predictions(raw, objectness, torch.randn(*shape, num_classes, generator=generator), LEVELS, STRIDES)


def iou_cxcywh(first: Tensor, second: Tensor) -> Tensor:
    """The overlap of every box of one set with every box of the other, [N, M], from their corners."""
    corners = [cxcywh_to_xyxy(boxes) for boxes in (first[:, None], second[None])]
    sides = torch.minimum(corners[0][..., 2:], corners[1][..., 2:]) - torch.maximum(*(c[..., :2] for c in corners))
    intersection = sides.clamp(min=0).prod(-1)
    union = first[:, None, 2:].prod(-1) + second[None, :, 2:].prod(-1) - intersection
    return torch.where(union > 0, intersection / union, torch.zeros_like(union))
