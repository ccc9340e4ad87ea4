"""Detections drawn on an image."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from yolox.structures import Detections, Image

_GOLDEN_RATIO = 0.618033988749895
_FONT = cv2.FONT_HERSHEY_SIMPLEX
Bgr = tuple[int, int, int]
_Edges = tuple[int, int, int, int]


def color_of(label: int) -> Bgr:
    """Return the colour (BGR) of a class, always the same; neighbouring classes lie far apart in hue."""
    hue = (0.02 + label * _GOLDEN_RATIO) % 1.0
    saturation, value = (0.85, 0.95), (0.65, 1.0)
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation[label // 7 % 2], value[1 - label // 3 % 2])
    return round(255 * blue), round(255 * green), round(255 * red)


def draw_detections(
    image: Image,
    detections: Detections,
    class_names: Sequence[str],
    *,
    lowest_score: float = 0.0,
    captions: Sequence[str] | None = None,
    show_scores: bool = True,
) -> Image:
    """Return a copy of the image with boxes, and names and scores above them; the best detections lie on top.

    Args:
        image: ``[H, W, 3]`` BGR; it stays as it is.
        detections: In pixels of the image; boxes may reach beyond it.
        class_names: By class index; unnamed classes are shown by number.
        lowest_score: Detections below are left out.
        captions: What to call each detection instead of its class name.
        show_scores: Write the score behind the name; labels have none.
    """
    canvas: Image = image.copy()
    height, width = canvas.shape[:2]
    thickness = _thickness(height, width)
    limits = np.array([width, height, width, height]) - 1
    edges = np.clip(np.round(detections.boxes_xyxy), 0, limits).astype(int)
    drawn = [k for k in np.argsort(detections.scores, kind="stable") if detections.scores[k] >= lowest_score]
    for index in drawn:
        left, top, right, bottom = edges[index].tolist()
        cv2.rectangle(canvas, (left, top), (right, bottom), color_of(int(detections.labels[index])), thickness)
    labels: list[_Label] = []
    strips = np.zeros((4, len(drawn)), np.int64)  # of the labels so far
    for index in reversed(drawn):  # the best one first has its choice of places
        score, class_index = float(detections.scores[index]), int(detections.labels[index])
        name = class_names[class_index] if class_index < len(class_names) else f"class {class_index}"
        if captions is not None:
            name = captions[index]
        text = f"{name} {100 * score:.0f}%" if show_scores else name
        taken = strips[:, : len(labels)]
        labels.append(_placed(text, edges[index].tolist(), color_of(class_index), (height, width), taken))
        strips[:, len(labels) - 1] = labels[-1].strip
    for label in reversed(labels):  # above all boxes, so that no line crosses a name
        _write_label_(canvas, label)
    return canvas


class _Label(NamedTuple):
    """A name on a filled strip: its edges, where its text begins, and the width of strokes."""

    text: str
    color: Bgr
    strip: _Edges
    start: tuple[int, int]
    stroke: int
    scale: float


def _placed(text: str, box: Sequence[int], color: Bgr, size: tuple[int, int], taken: NDArray[np.int64]) -> _Label:
    """Return a label above its box, or inside, below, inside at the bottom: where it covers least of ``taken``."""
    height, width = size
    thickness = _thickness(height, width)
    scale, stroke = max(0.4, 0.28 * (thickness + 0.6)), max(1, thickness // 2)
    (text_width, text_height), baseline = cv2.getTextSize(text, _FONT, scale, stroke)
    pad = 1 + thickness
    tall = text_height + baseline + pad
    wide = text_width + 2 * pad
    sides = [max(0, min(left, width - wide)) for left in (box[0], box[2] - wide)]
    heights = [top for top in (box[1] - tall, box[1], box[3], box[3] - tall) if 0 <= top <= height - tall] or [box[1]]
    strips = [(left, top, left + wide, top + tall) for left in sides for top in heights]
    covered = _covered(strips, taken)
    strip = strips[covered.index(min(covered))]
    return _Label(text, color, strip, (strip[0] + pad, strip[1] + text_height + pad), stroke, scale)


def _covered(strips: Sequence[_Edges], others: NDArray[np.int64]) -> list[int]:
    """Return how many pixels of each strip lie below others ``[4, N]``; what several of those cover counts again."""
    mine = np.array(strips, np.int64)[:, :, None]
    wide = np.minimum(mine[:, 2], others[2]) - np.maximum(mine[:, 0], others[0])
    tall = np.minimum(mine[:, 3], others[3]) - np.maximum(mine[:, 1], others[1])
    covered: list[int] = (wide.clip(0) * tall.clip(0)).sum(1).tolist()
    return covered


def _thickness(height: int, width: int) -> int:
    return max(1, round((height + width) / 500))


def _write_label_(canvas: Image, label: _Label) -> None:
    cv2.rectangle(canvas, label.strip[:2], label.strip[2:], label.color, cv2.FILLED)
    blue, green, red = label.color
    ink = (0, 0, 0) if 0.114 * blue + 0.587 * green + 0.299 * red > 140 else (255, 255, 255)
    cv2.putText(canvas, label.text, label.start, _FONT, label.scale, ink, label.stroke, cv2.LINE_AA)
