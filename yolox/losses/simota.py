"""SimOTA: which anchor points learn which object (YOLOX, section 2.1, in the version of January 2023).

The whole batch is one computation on compressed lists, because candidates are few among the anchor points. Legend:
B images, A anchor points, C classes; T objects of all images; K window cells of an object (9 per level);
M cells that are a candidate of some object of their image; F the most such cells in one image; P positives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from yolox.boxes import anchor_grid, decode_cxcywh, paired_iou_cxcywh
from yolox.structures import Assignment, Predictions, Size, Targets

CENTRE_RADIUS = 1.5  # in cells; reaches at most 3 cells along each axis
IOU_WEIGHT = 3.0
CHUNK_ELEMENTS = 1 << 18  # keeps the temporaries of the T x F overlaps in the processor's cache


class _Objects(NamedTuple):
    """The valid objects of the batch: image, place in G, box and class, all over T."""

    image: Tensor
    gt_index: Tensor
    boxes_cxcywh: Tensor
    label: Tensor


class _Cells(NamedTuple):
    """The M candidate cells in row-major order of ``[B, A]``.

    Flat index and image ``[M]``, decoded boxes ``[M, 4]``, and probabilities of class and object together ``[M, C]``.
    """

    flat: Tensor
    image: Tensor
    boxes_cxcywh: Tensor
    probability: Tensor


def assign(predictions: Predictions, targets: Targets, n_candidate_k: int = 10) -> Assignment:
    """Match anchor points with objects, in float32 and without gradients.

    An object competes for the anchor points whose centre lies within 1.5 cells of its own centre, and takes as many of
    the cheapest as its ``n_candidate_k`` best overlaps sum up to. Objects without such points stay unmatched.

    Args:
        predictions: Raw predictions of the network, of any floating type.
        targets: Objects; only those marked valid count, wherever they stand.
        n_candidate_k: How many overlaps of an object count, and the most anchor points that it takes.
    """
    device = predictions.boxes.device
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        objects = _valid_objects(targets)
        num_anchors = predictions.boxes.shape[1]
        anchor_TK, inside_TK = _windows(objects.boxes_cxcywh, predictions.level_sizes, predictions.strides)
        flat_TK = objects.image[:, None] * num_anchors + anchor_TK
        cells, slot_TK = _candidate_cells(predictions, flat_TK, inside_TK)
        if cells.flat.numel() == 0:
            return _nothing(predictions)
        num_taken_T = _dynamic_k(objects, cells, predictions.boxes.shape[0], n_candidate_k)
        cost_TK = _cost(objects, cells, slot_TK, inside_TK)
        owner_M = _resolve(cost_TK, slot_TK, inside_TK, num_taken_T, cells.flat.numel())
        won_P = (owner_M >= 0).nonzero().squeeze(1)
        owner_P = owner_M[won_P]
        positive = torch.zeros(predictions.boxes.shape[:2], dtype=torch.bool, device=device)
        positive.view(-1)[cells.flat[won_P]] = True
        iou_P = paired_iou_cxcywh(cells.boxes_cxcywh[won_P], objects.boxes_cxcywh[owner_P])
        return Assignment(positive, objects.gt_index[owner_P], iou_P)


def _nothing(predictions: Predictions) -> Assignment:
    device = predictions.boxes.device
    positive = torch.zeros(predictions.boxes.shape[:2], dtype=torch.bool, device=device)
    nothing = torch.zeros(0, dtype=torch.float32, device=device)
    return Assignment(positive, torch.zeros(0, dtype=torch.int64, device=device), nothing)


def _valid_objects(targets: Targets) -> _Objects:
    image_T, gt_index_T = targets.valid.nonzero(as_tuple=True)
    boxes_cxcywh = targets.boxes_cxcywh[image_T, gt_index_T].float()
    return _Objects(image_T, gt_index_T, boxes_cxcywh, targets.labels[image_T, gt_index_T])


def _axis_window(centre_T: Tensor, stride: int, length: int) -> tuple[Tensor, Tensor]:
    """Return the cells around a centre along one axis ``[T, 3]`` and which of them lie strictly within the radius."""
    reach = CENTRE_RADIUS * stride
    centre = centre_T[:, None]
    cell = torch.floor(centre / stride) + torch.arange(-1, 2, device=centre.device)
    position = (cell + 0.5) * stride
    inside = (position - (centre - reach) > 0) & ((centre + reach) - position > 0) & (cell >= 0) & (cell < length)
    return torch.where(inside, cell, 0).long(), inside


def _windows(boxes_cxcywh: Tensor, level_sizes: Sequence[Size], strides: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the anchor points around each object's centre ``[T, K]`` and which of them are its candidates."""
    anchors, insides = [], []
    start = 0
    for (height, width), stride in zip(level_sizes, strides, strict=True):
        column, column_inside = _axis_window(boxes_cxcywh[:, 0], stride, width)
        row, row_inside = _axis_window(boxes_cxcywh[:, 1], stride, height)
        anchors.append((start + row[:, :, None] * width + column[:, None, :]).flatten(1))
        insides.append((row_inside[:, :, None] & column_inside[:, None, :]).flatten(1))
        start += height * width
    return torch.cat(anchors, dim=1), torch.cat(insides, dim=1)


def _candidate_cells(predictions: Predictions, flat_TK: Tensor, inside_TK: Tensor) -> tuple[_Cells, Tensor]:
    """Return the distinct candidate cells and, for each window cell, its place among them (0 where outside)."""
    num_images, num_anchors = predictions.boxes.shape[:2]
    is_candidate = torch.zeros(num_images * num_anchors, dtype=torch.bool, device=flat_TK.device)
    is_candidate[flat_TK[inside_TK]] = True
    flat_M = is_candidate.nonzero().squeeze(1)
    slot = torch.zeros(num_images * num_anchors, dtype=torch.int64, device=flat_TK.device)
    slot[flat_M] = torch.arange(flat_M.numel(), device=flat_TK.device)

    def pick(values: Tensor) -> Tensor:
        return values.flatten(0, 1).index_select(0, flat_M).float()

    grid, stride = anchor_grid(predictions.level_sizes, predictions.strides, predictions.boxes)
    anchor_M = flat_M % num_anchors
    boxes_cxcywh = decode_cxcywh(pick(predictions.boxes), grid[anchor_M], stride[anchor_M])
    probability_MC = (pick(predictions.classes).sigmoid_() * pick(predictions.objectness).sigmoid_()).sqrt_()
    cells = _Cells(flat_M, flat_M // num_anchors, boxes_cxcywh, probability_MC)
    return cells, torch.where(inside_TK, slot[flat_TK], 0)


def _cost(objects: _Objects, cells: _Cells, slot_TK: Tensor, inside_TK: Tensor) -> Tensor:
    """Return what each candidate costs its object ``[T, K]``; infinite outside the centre region.

    The class term is a sum of binary cross-entropies over C of which only the object's own class depends on the object:
    it is one sum per cell and one correction per pair. Logarithms are cut at -100 as in torch's binary_cross_entropy.
    """
    log_absent_MC = torch.log1p(-cells.probability).clamp_(min=-100)
    label_TK = objects.label[:, None].expand_as(slot_TK)
    log_present_TK = cells.probability[slot_TK, label_TK].log_().clamp_(min=-100)
    class_cost_TK = log_absent_MC[slot_TK, label_TK] - log_present_TK - log_absent_MC.sum(dim=1)[slot_TK]
    iou_TK = paired_iou_cxcywh(cells.boxes_cxcywh[slot_TK], objects.boxes_cxcywh[:, None, :])
    cost_TK = class_cost_TK - IOU_WEIGHT * (iou_TK + 1e-8).log_()
    return torch.where(inside_TK & ~cost_TK.isnan(), cost_TK, torch.inf)


def _dynamic_k(objects: _Objects, cells: _Cells, num_images: int, most: int) -> Tensor:
    """Return how many anchor points each object may take: the sum of its ``most`` best overlaps, at least one ``[T]``.

    The overlaps are with all candidate cells of the image, those of other objects included.
    """
    count_B = torch.bincount(cells.image, minlength=num_images)
    start_B = count_B.cumsum(0) - count_B
    num_columns = int(count_B.max())
    column_F = torch.arange(num_columns, device=count_B.device)
    index_BF = (start_B[:, None] + column_F).clamp_(max=cells.image.numel() - 1)
    centre, size = cells.boxes_cxcywh[:, :2], cells.boxes_cxcywh[:, 2:]
    low_2M, high_2M, area_M = (centre - size / 2).T, (centre + size / 2).T, size[:, 0] * size[:, 1]
    low_2BF, high_2BF = low_2M[:, index_BF], high_2M[:, index_BF]
    # Padding gets boxes without width, which overlap with nothing.
    high_2BF[0] = torch.where(column_F < count_B[:, None], high_2BF[0], low_2BF[0])
    area_BF = area_M[index_BF]
    chunk = max(1, CHUNK_ELEMENTS // num_columns)
    sums = []
    for start in range(0, objects.image.numel(), chunk):
        image, box = objects.image[start : start + chunk], objects.boxes_cxcywh[start : start + chunk, :, None]
        low, high = box[:, :2] - box[:, 2:] / 2, box[:, :2] + box[:, 2:] / 2
        intersection = torch.ones(())
        for axis in range(2):
            left = torch.maximum(low_2BF[axis].index_select(0, image), low[:, axis])
            side = torch.minimum(high_2BF[axis].index_select(0, image), high[:, axis]).sub_(left).clamp_(min=0)
            intersection = side if axis == 0 else intersection.mul_(side)
        union = area_BF.index_select(0, image).add_(box[:, 2] * box[:, 3]).sub_(intersection).add_(1e-16)
        overlap = intersection.div_(union)
        sums.append(overlap.topk(min(most, num_columns), dim=1, sorted=False).values.sum(dim=1))
    return torch.cat(sums).long().clamp_(1, most)


def _resolve(cost_TK: Tensor, slot_TK: Tensor, inside_TK: Tensor, num_taken_T: Tensor, num_cells: int) -> Tensor:
    """Return the object that each candidate cell goes to ``[M]``, -1 where none takes it.

    Each object claims its cheapest candidates. A cell with several claims goes to the object for which it is cheapest.
    Unlike the official code, an object never claims cells outside its centre region when its own run out.
    """
    num_objects, num_window = cost_TK.shape
    order_TK = cost_TK.argsort(dim=1, stable=True)
    rank_K = torch.arange(num_window, device=cost_TK.device)
    num_own_T = inside_TK.sum(dim=1)
    claims_TK = rank_K < torch.minimum(num_taken_T, num_own_T)[:, None]
    row_TK = torch.arange(num_objects, device=cost_TK.device)[:, None].expand_as(slot_TK)
    claimed_slot = slot_TK.gather(1, order_TK)[claims_TK]
    owner_M = torch.full((num_cells,), -1, device=cost_TK.device)
    owner_M[claimed_slot] = row_TK[claims_TK]

    contested_M = torch.bincount(claimed_slot, minlength=num_cells) > 1
    rivals_TK = contested_M[slot_TK] & inside_TK
    rival_slot, rival_row, rival_cost = slot_TK[rivals_TK], row_TK[rivals_TK], cost_TK[rivals_TK]
    lowest_M = torch.full((num_cells,), torch.inf, dtype=cost_TK.dtype, device=cost_TK.device)
    lowest_M.scatter_reduce_(0, rival_slot, rival_cost, "amin")
    cheapest = rival_cost == lowest_M[rival_slot]
    first_M = torch.full((num_cells,), num_objects, device=cost_TK.device)
    first_M.scatter_reduce_(0, rival_slot[cheapest], rival_row[cheapest], "amin")
    return torch.where(contested_M, first_M, owner_M)
