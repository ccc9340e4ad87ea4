"""The training loss of a batch: what the network predicted against what SimOTA asks of it. Always in float32."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from yolox.boxes import anchor_grid, decode_cxcywh, paired_iou_cxcywh
from yolox.losses.simota import assign
from yolox.structures import Assignment, LossTerms, Predictions, Targets

IOU_WEIGHT = 5.0


def detection_loss(
    predictions: Predictions,
    targets: Targets,
    *,
    use_l1: bool,
    mean_over_ranks: Callable[[Tensor], Tensor] | None = None,
    num_ranks: int = 1,
    n_candidate_k: int = 10,
) -> LossTerms:
    """Return the loss terms of a batch, each a sum divided by the number of positive anchor points (at least 1).

    Args:
        predictions: Raw predictions of the network, of any floating type.
        targets: Objects of the batch in pixels of the network's input.
        use_l1: Whether to add the L1 distance of raw box outputs, as in the final phase of training.
        mean_over_ranks: Maps the number of positives of this process to the mean over all processes, so that several
            processes take the step that one would.
        num_ranks: How many processes there are: their mean of positives counts as at least one positive in all.
        n_candidate_k: See `yolox.losses.simota.assign`.
    """
    with torch.autocast(predictions.boxes.device.type, enabled=False):
        assignment = assign(predictions, targets, n_candidate_k)
        num_positives = torch.tensor(float(assignment.gt_index.numel()), device=predictions.boxes.device)
        shared = num_positives if mean_over_ranks is None else mean_over_ranks(num_positives)
        iou, objectness, classes, l1 = _sums(predictions, targets, assignment, use_l1=use_l1)
        scale = 1.0 / shared.clamp(min=1.0 / num_ranks)
        iou, objectness, classes, l1 = IOU_WEIGHT * iou * scale, objectness * scale, classes * scale, l1 * scale
        num_foreground = num_positives / targets.valid.sum().clamp(min=1)
        return LossTerms(iou + objectness + classes + l1, iou, objectness, classes, l1, num_foreground)


def _sums(
    predictions: Predictions, targets: Targets, assignment: Assignment, *, use_l1: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the box, objectness, class and L1 losses summed over the batch."""
    num_anchors = assignment.positive.shape[1]
    flat_P = assignment.positive.flatten().nonzero().squeeze(1)
    image_P, anchor_P = flat_P // num_anchors, flat_P % num_anchors
    grid, stride = anchor_grid(predictions.level_sizes, predictions.strides, predictions.boxes)
    grid_P, stride_P = grid[anchor_P], stride[anchor_P]
    raw_P = predictions.boxes.flatten(0, 1).index_select(0, flat_P).float()
    wanted_P = targets.boxes_cxcywh[image_P, assignment.gt_index].float()
    iou = (1.0 - paired_iou_cxcywh(decode_cxcywh(raw_P, grid_P, stride_P), wanted_P) ** 2).sum()

    wanted_objectness = assignment.positive.unsqueeze(-1).float()
    objectness = F.binary_cross_entropy_with_logits(predictions.objectness.float(), wanted_objectness, reduction="sum")

    logits_PC = predictions.classes.flatten(0, 1).index_select(0, flat_P).float()
    label_P = targets.labels[image_P, assignment.gt_index]
    wanted_PC = torch.zeros_like(logits_PC).scatter_(1, label_P[:, None], assignment.iou[:, None])
    classes = F.binary_cross_entropy_with_logits(logits_PC, wanted_PC, reduction="sum")

    l1 = (raw_P - _encode(wanted_P, grid_P, stride_P)).abs().sum() if use_l1 else torch.zeros_like(iou)
    return iou, objectness, classes, l1


def _encode(boxes_cxcywh: Tensor, grid: Tensor, stride: Tensor) -> Tensor:
    """Return the raw outputs that decode to these boxes; the small number keeps zero sizes finite."""
    return torch.cat((boxes_cxcywh[:, :2] / stride - grid, (boxes_cxcywh[:, 2:] / stride + 1e-8).log()), dim=-1)
