"""From raw predictions to boxes and scores, always in float32, and the modules that are deployed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from yolox.boxes import anchor_grid, cxcywh_to_xyxy, decode_cxcywh
from yolox.models.detector import Detector
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


class DecodedDetector(nn.Module):
    """The deployable detector: two outputs, so that no int8 scale ever covers both pixels and probabilities.

    Args:
        detector: The network; it is used, not copied.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``boxes_xyxy`` ``[B, A, 4]`` in pixels and ``scores`` ``[B, A, C]``, both float32.

        Args:
            images: ``[B, 3, H, W]`` BGR 0...255, float or uint8; H and W multiples of 32.
        """
        decoded = decode(self.detector(images))
        return decoded.boxes_xyxy, decoded.scores


class OfficialDetector(nn.Module):
    """The detector with the one output of official exports, see `official_output`.

    Args:
        detector: The network; it is used, not copied.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> Tensor:
        """Return ``[B, A, 5 + C]`` for ``[B, 3, H, W]`` BGR 0...255."""
        return official_output(self.detector(images))


class GridRelativeDetector(nn.Module):
    """The detector with the output of official exports by default: boxes are left for the reader to decode.

    Args:
        detector: The network; it is used, not copied.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> Tensor:
        """Return ``[B, A, 5 + C]`` for ``[B, 3, H, W]`` BGR 0...255: raw boxes, then probabilities."""
        found = self.detector(images)
        return torch.cat((found.boxes, found.objectness.sigmoid(), found.classes.sigmoid()), dim=-1)


@dataclass(frozen=True)
class OutputLayout:
    """What a deployed detector returns.

    Args:
        build: Makes the module to deploy of a detector.
        names: Names of the outputs, unless the user gives another one.
        description: One line for whoever reads the outputs.
    """

    build: Callable[[Detector], nn.Module]
    names: tuple[str, ...]
    description: str


OUTPUT_LAYOUTS = {
    "grid": OutputLayout(
        GridRelativeDetector,
        ("output",),
        "output: [B, A, 5 + C] = x, y, log w, log h relative to the grid (decode with strides 8, 16, 32), object, "
        "classes",
    ),
    "pixels": OutputLayout(
        OfficialDetector, ("output",), "output: [B, A, 5 + C] = cx, cy, w, h in pixels, object, classes"
    ),
    "boxes_scores": OutputLayout(
        DecodedDetector,
        ("boxes", "scores"),
        "outputs: boxes [B, A, 4] xyxy in pixels, scores [B, A, C] = object x class",
    ),
}
"""The layouts by name."""
