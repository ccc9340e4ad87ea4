"""Arithmetic of boxes and of the anchor grid, as pure functions of tensors.

``xyxy`` is left, top, right, bottom; ``cxcywh`` is centre and size; both in pixels, in the last axis.
Axes: A anchor points, N and M boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from yolox.structures import Size


def cxcywh_to_xyxy(boxes_cxcywh: Tensor) -> Tensor:
    """Return boxes given by centre and size as corners."""
    centre, half = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:] / 2
    return torch.cat((centre - half, centre + half), dim=-1)


def paired_iou_cxcywh(first_cxcywh: Tensor, second_cxcywh: Tensor) -> Tensor:
    """Return the overlap of each box with its counterpart, differentiable everywhere.

    Args:
        first_cxcywh: ``[..., 4]``.
        second_cxcywh: ``[..., 4]``, broadcast against the first.

    Returns:
        ``[...]`` in 0...1, 0 for two boxes without any area.
    """
    centre_a, size_a = first_cxcywh[..., :2], first_cxcywh[..., 2:]
    centre_b, size_b = second_cxcywh[..., :2], second_cxcywh[..., 2:]
    top_left = torch.maximum(centre_a - size_a / 2, centre_b - size_b / 2)
    bottom_right = torch.minimum(centre_a + size_a / 2, centre_b + size_b / 2)
    sides = (bottom_right - top_left).clamp(min=0)
    intersection = sides[..., 0] * sides[..., 1]
    union = size_a[..., 0] * size_a[..., 1] + size_b[..., 0] * size_b[..., 1] - intersection
    return intersection / (union + 1e-16)


def _build_anchor_grid(
    level_sizes: Sequence[Size], strides: Sequence[int], device: torch.device
) -> tuple[Tensor, Tensor]:
    grids, steps = [], []
    for (height, width), stride in zip(level_sizes, strides, strict=True):
        rows = torch.arange(height, dtype=torch.float32, device=device)
        columns = torch.arange(width, dtype=torch.float32, device=device)
        y, x = rows[:, None].expand(height, width), columns[None, :].expand(height, width)
        grids.append(torch.stack((x, y), dim=-1).reshape(height * width, 2))
        steps.append(torch.full((height * width, 1), float(stride), dtype=torch.float32, device=device))
    return torch.cat(grids), torch.cat(steps)


@lru_cache(maxsize=64)
def _cached_anchor_grid(
    level_sizes: tuple[Size, ...], strides: tuple[int, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):  # an inference tensor could not be saved for a later backward pass
        return _build_anchor_grid(level_sizes, strides, device)


def anchor_grid(level_sizes: Sequence[Size], strides: Sequence[int], like: Tensor) -> tuple[Tensor, Tensor]:
    """Return column and row ``[A, 2]`` and stride ``[A, 1]`` of every anchor point, float32, on the device of ``like``.

    The tensors may be shared between calls: do not write into them.
    """
    # What is built during a trace belongs to that trace, so only plain eager tensors are kept.
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if torch.compiler.is_compiling() or tracing or type(like) is not Tensor:
        return _build_anchor_grid(level_sizes, strides, like.device)
    return _cached_anchor_grid(tuple(level_sizes), tuple(strides), like.device)


def decode_cxcywh(raw: Tensor, grid: Tensor, stride: Tensor) -> Tensor:
    """Turn grid-relative ``(x, y, log w, log h)`` ``[..., 4]`` into boxes in pixels.

    Args:
        raw: Output of the box branch.
        grid: Column and row of each anchor point, ``[..., 2]``.
        stride: Pixels per cell, ``[..., 1]``.
    """
    return torch.cat(((raw[..., :2] + grid) * stride, raw[..., 2:].exp() * stride), dim=-1)
