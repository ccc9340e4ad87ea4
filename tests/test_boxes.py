"""Laws of box arithmetic and of the anchor grid."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from yolox.boxes import anchor_grid, cxcywh_to_xyxy, decode_cxcywh, paired_iou_cxcywh
from yolox.data.image_ops import xyxy_to_cxcywh
from yolox.structures import Size

BOX_CXCYWH = st.tuples(*[st.floats(-1e4, 1e4)] * 2, *[st.floats(1e-2, 1e4)] * 2)


def test_corners_by_hand() -> None:
    torch.testing.assert_close(cxcywh_to_xyxy(torch.tensor([10.0, 20.0, 4.0, 6.0])), torch.tensor([8.0, 17, 12, 23]))


def test_overlap_by_hand() -> None:
    one = torch.tensor([1.0, 1.0, 2.0, 2.0])
    others = torch.tensor([[2.0, 2.0, 2.0, 2.0], [1.0, 1.0, 2.0, 2.0], [3.0, 1.0, 2.0, 2.0], [5.0, 5.0, 0.0, 0.0]])
    torch.testing.assert_close(paired_iou_cxcywh(one, others), torch.tensor([1 / 7, 1.0, 0.0, 0.0]))


@given(st.lists(BOX_CXCYWH, min_size=1, max_size=8), st.lists(BOX_CXCYWH, min_size=1, max_size=8))
def test_overlap_is_symmetric_and_bounded_and_takes_leading_axes(
    first: list[tuple[float, ...]], second: list[tuple[float, ...]]
) -> None:
    one, other = torch.tensor(first, dtype=torch.float64)[:, None], torch.tensor(second, dtype=torch.float64)
    overlap = paired_iou_cxcywh(one, other)
    assert overlap.shape == (len(first), len(second))
    torch.testing.assert_close(overlap, paired_iou_cxcywh(other, one))
    assert ((overlap >= 0) & (overlap <= 1 + 1e-6)).all()
    torch.testing.assert_close(paired_iou_cxcywh(one, one), torch.ones_like(overlap[:, :1]))


@given(st.lists(BOX_CXCYWH, max_size=8))
def test_corners_and_centres_are_inverse(boxes: list[tuple[float, ...]]) -> None:
    given_cxcywh = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)
    back = xyxy_to_cxcywh(cxcywh_to_xyxy(given_cxcywh).numpy())
    torch.testing.assert_close(torch.from_numpy(back), given_cxcywh, rtol=0, atol=1e-9)


def test_points_overlap_with_nothing() -> None:
    points = torch.zeros(2, 4, requires_grad=True)
    overlap = paired_iou_cxcywh(points, torch.zeros(2, 4))
    overlap.sum().backward()
    assert not overlap.any()
    assert points.grad is not None
    assert points.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(0, 4), (3, 0, 4)])
def test_no_boxes_at_all(shape: tuple[int, ...]) -> None:
    empty = torch.zeros(shape)
    assert cxcywh_to_xyxy(empty).shape == shape
    assert paired_iou_cxcywh(empty, empty).shape == shape[:-1]


def test_anchor_grid_runs_over_levels_row_by_row() -> None:
    grid, stride = anchor_grid((Size(2, 3), Size(1, 2)), (8, 16), torch.zeros(1))
    assert grid.tolist() == [[0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [2, 1], [0, 0], [1, 0]]
    assert stride.squeeze(1).tolist() == [8] * 6 + [16] * 2


def test_anchor_grid_first_made_in_inference_mode_serves_training() -> None:
    sizes = (Size(3, 5),)
    with torch.inference_mode():
        anchor_grid(sizes, (8,), torch.zeros(1))
    grid, stride = anchor_grid(sizes, (8,), torch.zeros(1))
    raw = torch.zeros(15, 4, requires_grad=True)
    decode_cxcywh(raw, grid, stride).sum().backward()
    assert raw.grad is not None
    assert (raw.grad == 8).all()


def test_decode_by_hand() -> None:
    raw = torch.tensor([0.5, 0.25, 0.0, 1.0])
    box = decode_cxcywh(raw, torch.tensor([3.0, 2.0]), torch.tensor([16.0]))
    torch.testing.assert_close(box, torch.tensor([56.0, 36.0, 16.0, 16 * torch.e]))
