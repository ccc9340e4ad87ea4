"""The batched assignment against a slow, dense one written image by image, and its laws."""

from __future__ import annotations

import operator

import pytest
import torch
import torch.nn.functional as F
from assignment_cases import iou_cxcywh, make_predictions, make_targets, map_tensors
from torch import Tensor

from yolox.boxes import anchor_grid, decode_cxcywh
from yolox.losses.simota import assign
from yolox.structures import Assignment, Predictions, Targets


def slow_assign(predictions: Predictions, targets: Targets, image: int) -> tuple[Tensor, Tensor]:
    """SimOTA of one image as the paper's code states it: dense matrices, loops over objects. Returns G index or -1."""
    grid, stride = anchor_grid(predictions.level_sizes, predictions.strides, predictions.boxes)
    boxes = decode_cxcywh(predictions.boxes[image], grid, stride)
    index_G = targets.valid[image].nonzero().squeeze(1)
    objects, labels = targets.boxes_cxcywh[image][index_G], targets.labels[image][index_G]
    matched = torch.full((boxes.shape[0],), -1)
    overlap = torch.zeros(boxes.shape[0])
    centres = (grid + 0.5) * stride
    in_region = ((centres[None] - objects[:, None, :2]).abs() < 1.5 * stride[None]).all(dim=-1)
    cells = in_region.any(dim=0).nonzero().squeeze(1) if len(index_G) else torch.zeros(0, dtype=torch.int64)
    if not len(cells):
        return matched, overlap
    in_region = in_region[:, cells]
    iou = iou_cxcywh(objects, boxes[cells])
    probability = (predictions.classes[image][cells].sigmoid() * predictions.objectness[image][cells].sigmoid()).sqrt()
    one_hot = F.one_hot(labels, probability.shape[1]).float()[:, None].expand(-1, len(cells), -1)
    class_cost = F.binary_cross_entropy(probability[None].expand_as(one_hot), one_hot, reduction="none").sum(-1)
    cost = class_cost + 3.0 * -torch.log(iou + 1e-8) + 1e6 * (~in_region)
    matching = torch.zeros_like(cost, dtype=torch.bool)
    for row in range(len(index_G)):
        k = max(1, int(iou[row].topk(min(10, len(cells))).values.sum()))
        matching[row, cost[row].topk(k, largest=False).indices] = True
    for column in range(len(cells)):
        if matching[:, column].sum() > 1:
            matching[:, column] = False
            matching[cost[:, column].argmin(), column] = True
        if matching[:, column].any():
            row = int(matching[:, column].nonzero())
            matched[cells[column]] = index_G[row]
            overlap[cells[column]] = iou[row, column]
    return matched, overlap


def dense(assignment: Assignment) -> tuple[Tensor, Tensor]:
    """G index of every anchor point ``[B, A]``, -1 where negative, and the overlap."""
    matched = torch.full(assignment.positive.shape, -1)
    overlap = torch.zeros(assignment.positive.shape)
    matched[assignment.positive] = assignment.gt_index
    overlap[assignment.positive] = assignment.iou
    return matched, overlap


@pytest.mark.parametrize("seed", range(25))
def test_equals_the_slow_reference(seed: int) -> None:
    targets = make_targets(seed, num_boxes=2 + seed)
    predictions = make_predictions(seed, targets)
    matched, overlap = dense(assign(predictions, targets))
    for image in range(matched.shape[0]):
        expected_matched, expected_overlap = slow_assign(predictions, targets, image)
        torch.testing.assert_close(matched[image], expected_matched, rtol=0, atol=0)
        torch.testing.assert_close(overlap[image], expected_overlap)


def test_the_random_cases_hold_conflicts_and_objects_with_many_points() -> None:
    targets = make_targets(20, num_boxes=22)
    assignment = assign(make_predictions(20, targets), targets)
    counts = torch.bincount(assignment.gt_index)
    assert counts.max() > 2


def test_a_batch_equals_its_images_one_by_one() -> None:
    targets = make_targets(3, num_images=5)
    predictions = make_predictions(3, targets)
    matched, overlap = dense(assign(predictions, targets))
    for image in range(5):
        part = slice(image, image + 1)
        single = map_tensors(operator.itemgetter(part), predictions)
        one_matched, one_overlap = dense(assign(single, Targets(*(value[part] for value in targets))))
        assert torch.equal(one_matched[0], matched[image])
        assert torch.equal(one_overlap[0], overlap[image])


def test_the_place_of_padding_does_not_matter() -> None:
    targets = make_targets(4)
    predictions = make_predictions(4, targets)
    order = torch.randperm(targets.labels.shape[1], generator=torch.Generator().manual_seed(0))
    moved = Targets(*(value[:, order] for value in targets))
    matched, overlap = dense(assign(predictions, targets))
    moved_matched, moved_overlap = dense(assign(predictions, moved))
    assert torch.equal(torch.where(moved_matched >= 0, order[moved_matched], -1), matched)
    assert torch.equal(moved_overlap, overlap)


def test_what_padding_holds_does_not_matter() -> None:
    targets = make_targets(5)
    predictions = make_predictions(5, targets)
    dirty = targets.boxes_cxcywh.masked_fill(~targets.valid[..., None], torch.nan)
    for first, second in zip(
        assign(predictions, targets), assign(predictions, targets._replace(boxes_cxcywh=dirty)), strict=True
    ):
        assert torch.equal(first, second)


def test_arguments_stay_as_they_are() -> None:
    targets = make_targets(6)
    predictions = make_predictions(6, targets)
    before = [value.clone() for value in (*predictions[:3], *targets)]
    assign(predictions, targets)
    assert all(torch.equal(old, new) for old, new in zip(before, (*predictions[:3], *targets), strict=True))


@pytest.mark.parametrize("num_boxes", [0, 4])
def test_a_batch_without_objects(num_boxes: int) -> None:
    targets = make_targets(7, num_boxes=num_boxes)
    targets = targets._replace(valid=torch.zeros_like(targets.valid))
    predictions = make_predictions(7, make_targets(7))
    assignment = assign(predictions, targets)
    assert not assignment.positive.any()
    assert assignment.gt_index.shape == assignment.iou.shape == (0,)
    assert (assignment.gt_index.dtype, assignment.iou.dtype) == (torch.int64, torch.float32)


def test_an_object_far_outside_stays_unmatched_and_harms_no_other() -> None:
    targets = make_targets(8, num_images=1, num_boxes=3)._replace(valid=torch.ones(1, 3, dtype=torch.bool))
    predictions = make_predictions(8, targets)
    alone, _ = dense(assign(predictions, Targets(*(value[:, 1:] for value in targets))))
    targets.boxes_cxcywh[0, 0] = torch.tensor([-500.0, 900.0, 30.0, 30.0])
    matched, _ = dense(assign(predictions, targets))
    assert not (matched == 0).any()
    assert torch.equal(torch.where(alone >= 0, alone + 1, -1), matched)


def test_an_object_without_area_takes_one_point() -> None:
    boxes = torch.tensor([[[50.0, 50.0, 0.0, 0.0]]])
    targets = Targets(boxes, torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.bool))
    assignment = assign(make_predictions(9, targets._replace(boxes_cxcywh=boxes + 1)), targets)
    assert assignment.positive.sum() == 1
    assert assignment.iou.item() == 0


def test_predictions_in_bf16_are_matched_in_float32() -> None:
    targets = make_targets(10)
    predictions = make_predictions(10, targets)
    low = map_tensors(Tensor.bfloat16, predictions)
    same = map_tensors(Tensor.float, low)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assignment = assign(low, targets)
    assert assignment.iou.dtype == torch.float32
    assert all(torch.equal(one, other) for one, other in zip(assignment, assign(same, targets), strict=True))


def test_predictions_that_are_not_numbers_do_not_crash() -> None:
    targets = make_targets(11)
    predictions = make_predictions(11, targets)
    broken = predictions._replace(boxes=torch.full_like(predictions.boxes, torch.nan))
    assert assign(broken, targets).positive.shape == predictions.boxes.shape[:2]
