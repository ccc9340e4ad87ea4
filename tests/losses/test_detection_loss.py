"""The loss against plain formulas, and its laws."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from assignment_cases import LEVELS, STRIDES, iou_cxcywh, make_predictions, make_targets, map_tensors
from torch import Tensor

from yolox.boxes import anchor_grid, decode_cxcywh
from yolox.losses.detection_loss import detection_loss
from yolox.losses.simota import assign
from yolox.structures import Predictions, Targets
from yolox.trainer.operator_precision import OperatorLists, OperatorPrecisionMode


def _with_gradients(predictions: Predictions) -> Predictions:
    return map_tensors(lambda value: value.detach().clone().requires_grad_(), predictions)


def _select(predictions: Predictions, images: slice) -> Predictions:
    return map_tensors(lambda value: value[images], predictions)


def _slow_terms(predictions: Predictions, targets: Targets) -> dict[str, float]:
    """The formulas one positive at a time."""
    assignment = assign(predictions, targets)
    grid, stride = anchor_grid(LEVELS, STRIDES, predictions.boxes)
    iou_sum = class_sum = l1_sum = 0.0
    for number, (image, anchor) in enumerate(assignment.positive.nonzero().tolist()):
        index = int(assignment.gt_index[number])
        wanted = targets.boxes_cxcywh[image, index]
        raw = predictions.boxes[image, anchor]
        box = decode_cxcywh(raw, grid[anchor], stride[anchor])
        iou = iou_cxcywh(box[None], wanted[None]).item()
        iou_sum += 1 - iou**2
        classes = F.one_hot(targets.labels[image, index], predictions.classes.shape[-1]) * iou
        logits = predictions.classes[image, anchor]
        class_sum += F.binary_cross_entropy_with_logits(logits, classes, reduction="sum").item()
        encoded = torch.cat((wanted[:2] / stride[anchor] - grid[anchor], (wanted[2:] / stride[anchor]).log()))
        l1_sum += (raw - encoded).abs().sum().item()
    objectness = F.binary_cross_entropy_with_logits(
        predictions.objectness[..., 0], assignment.positive.float(), reduction="sum"
    ).item()
    num = max(1, int(assignment.positive.sum()))
    terms = {"iou": 5 * iou_sum / num, "objectness": objectness / num, "classes": class_sum / num, "l1": l1_sum / num}
    return terms | {"total": sum(terms.values()), "num_foreground": num / int(targets.valid.sum())}


@pytest.mark.parametrize("seed", range(5))
def test_terms_equal_the_plain_formulas(seed: int) -> None:
    targets = make_targets(seed + 40, num_boxes=12)
    predictions = make_predictions(seed + 40, targets)
    terms = detection_loss(predictions, targets, use_l1=True)._asdict()
    for name, expected in _slow_terms(predictions, targets).items():
        assert terms[name].item() == pytest.approx(expected, rel=1e-4), name
    without = detection_loss(predictions, targets, use_l1=False)
    assert without.l1 == 0
    assert without.total.item() == pytest.approx(terms["total"].item() - terms["l1"].item(), rel=1e-5)


def test_several_processes_make_the_step_of_one() -> None:
    targets = make_targets(50, num_images=4)
    predictions = _with_gradients(make_predictions(50, targets))
    detection_loss(predictions, targets, use_l1=True).total.backward()
    parts = _with_gradients(predictions)
    halves = [slice(0, 2), slice(2, 4)]
    counts = [assign(predictions, targets).positive[half].sum() for half in halves]
    mean = torch.stack(counts).float().mean()
    assert counts[0] != counts[1]
    for half in halves:
        part = _select(parts, half)
        part_targets = Targets(*(value[half] for value in targets))
        (detection_loss(part, part_targets, use_l1=True, mean_over_ranks=lambda _: mean).total / 2).backward()
    for one, several in zip(predictions[:3], parts[:3], strict=True):
        torch.testing.assert_close(one.grad, several.grad)


def test_ranks_without_objects_take_the_step_of_one_process() -> None:
    """The mean of no positives counts as one positive in all, not as one in each process."""
    targets = make_targets(51)
    targets = targets._replace(valid=torch.zeros_like(targets.valid))
    predictions, parts = (_with_gradients(make_predictions(51, make_targets(51))) for _ in range(2))
    detection_loss(predictions, targets, use_l1=True).total.backward()
    for half in (slice(0, 1), slice(1, None)):
        part = _select(parts, half)
        part_targets = Targets(*(value[half] for value in targets))
        terms = detection_loss(part, part_targets, use_l1=True, mean_over_ranks=lambda mean: mean, num_ranks=2)
        (terms.total / 2).backward()
    torch.testing.assert_close(predictions.objectness.grad, parts.objectness.grad)


@pytest.mark.parametrize("num_boxes", [0, 3])
def test_without_objects_only_objectness_is_learned(num_boxes: int) -> None:
    targets = make_targets(51, num_boxes=num_boxes)
    targets = targets._replace(valid=torch.zeros_like(targets.valid))
    predictions = _with_gradients(make_predictions(51, make_targets(51)))
    terms = detection_loss(predictions, targets, use_l1=True)
    terms.total.backward()
    assert terms.total == terms.objectness > 0
    assert terms.num_foreground == 0
    gradients = [value.grad for value in predictions[:3]]
    assert gradients[0] is not None
    assert not gradients[0].any()
    assert gradients[1] is not None
    assert gradients[1].any()


@pytest.mark.parametrize("size", [0.0, 1e-3, 1e4])
def test_gradients_are_finite_for_strange_boxes(size: float) -> None:
    targets = make_targets(52)
    boxes = targets.boxes_cxcywh.clone()
    boxes[:, ::2, 2:] = size
    targets = Targets(boxes, targets.labels, torch.ones_like(targets.valid))
    predictions = _with_gradients(make_predictions(52, make_targets(52)))
    detection_loss(predictions, targets, use_l1=True).total.backward()
    for value in predictions[:3]:
        assert value.grad is not None
        assert value.grad.isfinite().all()


def test_the_loss_of_bf16_predictions_is_float32() -> None:
    targets = make_targets(53)
    predictions = make_predictions(53, targets)
    low = map_tensors(lambda value: value.bfloat16().requires_grad_(), predictions)
    rounded = map_tensors(lambda value: value.detach().float(), low)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = detection_loss(low, targets, use_l1=True)
    expected = detection_loss(rounded, targets, use_l1=True)
    for term, value in zip(terms, expected, strict=True):
        assert term.dtype == torch.float32
        torch.testing.assert_close(term.detach(), value)
    terms.total.backward()
    gradient: Tensor | None = low.classes.grad
    assert gradient is not None
    assert gradient.dtype == torch.bfloat16


def test_lists_of_operators_leave_the_loss_in_float32() -> None:
    """The lists of the Gaudi port name what a loss consists of; they are meant for the network."""
    targets = make_targets(60)
    predictions = make_predictions(60, targets)
    lists = OperatorLists(bf16=frozenset({"mul", "div", "sigmoid", "add", "sub", "mm"}), fp32=frozenset({"exp"}))
    with torch.autocast("cpu", torch.bfloat16), OperatorPrecisionMode(lists, "cpu"):
        assert (targets.boxes_cxcywh * 2).dtype == torch.bfloat16
        listed = detection_loss(predictions, targets, use_l1=True)
    torch.testing.assert_close(listed, detection_loss(predictions, targets, use_l1=True), rtol=0, atol=0)


def test_the_number_of_candidates_bounds_the_positives() -> None:
    targets = make_targets(61, num_boxes=12)
    predictions = make_predictions(61, targets)
    one, ten = (assign(predictions, targets, n_candidate_k=number).gt_index.numel() for number in (1, 10))
    assert one <= int(targets.valid.sum()) < ten
    default = detection_loss(predictions, targets, use_l1=False)
    asked = detection_loss(predictions, targets, use_l1=False, n_candidate_k=1)
    assert asked.num_foreground < default.num_foreground
