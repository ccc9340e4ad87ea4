"""From raw predictions to boxes and scores, always in float32, and the modules that are deployed."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from yolox.boxes import anchor_grid, cxcywh_to_xyxy, decode_cxcywh
from yolox.models.detector import Detector
from yolox.models.layers import ConvBnAct, Focus
from yolox.structures import Decoded, Predictions, Size


def _boxes_cxcywh(predictions: Predictions) -> Tensor:
    """Return boxes in pixels; bf16 would round a coordinate of 600 to a multiple of 4."""
    raw = predictions.boxes.float()
    grid, stride = anchor_grid(_constant(predictions.level_sizes), predictions.strides, raw)
    return decode_cxcywh(raw, grid, stride)


def _constant(sizes: Sequence[Size]) -> tuple[Size, ...]:
    """Return sizes as plain numbers, so that grids are constants: ``torch.jit.trace`` makes tensors of them."""
    if not any(isinstance(side, Tensor) for size in sizes for side in size):
        return tuple(sizes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        return tuple(Size(*(int(side) if isinstance(side, Tensor) else side for side in size)) for size in sizes)


def decode(predictions: Predictions) -> Decoded:
    """Return boxes in pixels of the network's input and scores = objectness x class, in float32."""
    objectness, classes = predictions.objectness.float().sigmoid(), predictions.classes.float().sigmoid()
    return Decoded(cxcywh_to_xyxy(_boxes_cxcywh(predictions)), objectness * classes)


def official_output(predictions: Predictions) -> Tensor:
    """Return the official layout ``[B, A, 5 + C]``: cx, cy, w, h in pixels, objectness, classes as probabilities."""
    objectness, classes = predictions.objectness.float().sigmoid(), predictions.classes.float().sigmoid()
    return torch.cat((_boxes_cxcywh(predictions), objectness, classes), dim=-1)


def grid_output(predictions: Predictions) -> Tensor:
    """Return the layout of official exports by default, ``[B, A, 5 + C]``: raw boxes, then probabilities."""
    return torch.cat((predictions.boxes, predictions.objectness.sigmoid(), predictions.classes.sigmoid()), dim=-1)


def boxes_and_scores(predictions: Predictions) -> tuple[Tensor, Tensor]:
    """Return ``boxes_xyxy`` ``[B, A, 4]`` in pixels and ``scores`` ``[B, A, C]``, both float32."""
    decoded = decode(predictions)
    return decoded.boxes_xyxy, decoded.scores


class DecodedDetector(nn.Module):
    """The deployable detector: two outputs, so that no int8 scale ever covers both pixels and probabilities.

    Args:
        detector: The network; it is used, not copied.
        output: Makes what is returned of the raw predictions: one of the functions above.
    """

    def __init__(self, detector: Detector, output: Callable[[Predictions], Any] = boxes_and_scores) -> None:
        super().__init__()
        self.detector = detector
        self.output = output

    def forward(self, images: Tensor) -> Any:
        """Return the output for ``[B, 3, H, W]`` BGR 0...255, float or uint8; H and W multiples of 32."""
        return self.output(self.detector(images))


@dataclass(frozen=True)
class OutputLayout:
    """What a deployed detector returns; `OUTPUT_DESCRIPTIONS` describes each.

    Args:
        output: Makes it of raw predictions.
        names: Names of the outputs, unless the user gives another one.
    """

    output: Callable[[Predictions], Any]
    names: tuple[str, ...]


OUTPUT_LAYOUTS = {
    "grid": OutputLayout(grid_output, ("output",)),
    "pixels": OutputLayout(official_output, ("output",)),
    "boxes_scores": OutputLayout(boxes_and_scores, ("boxes", "scores")),
}
"""The layouts by name."""


def replace_focus_(module: nn.Module) -> None:
    """Put a 6x6 convolution of stride 2 with the same sums in place of each `Focus` inside ``module``.

    Few inference engines take its arrays of six axes. Images are float.
    """
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Focus):
                parent.add_module(name, _as_convolution(child))


def _as_convolution(focus: Focus) -> ConvBnAct:
    inner = focus.conv.conv
    weight = inner.weight.detach()
    out_channels, channels = weight.shape[0], weight.shape[1] // 4
    blocks = weight.reshape(out_channels, 2, 2, channels, 3, 3)  # axis 1: left, right; axis 2: top, bottom
    block = copy.deepcopy(focus.conv)
    block.conv = nn.Conv2d(channels, out_channels, 6, stride=2, padding=2, bias=inner.bias is not None)
    block.conv.weight = nn.Parameter(blocks.permute(0, 3, 4, 2, 5, 1).reshape(out_channels, channels, 6, 6))
    block.conv.bias = inner.bias
    return block
