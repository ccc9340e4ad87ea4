"""Detections drawn on an image."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np

from yolox.structures import Detections, Image

_GOLDEN_RATIO = 0.618033988749895
_FONT = cv2.FONT_HERSHEY_SIMPLEX
Bgr = tuple[int, int, int]


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
    thickness = max(1, round((height + width) / 500))
    limits = np.array([width, height, width, height]) - 1
    edges = np.clip(np.round(detections.boxes_xyxy), 0, limits).astype(int)
    drawn = [k for k in np.argsort(detections.scores, kind="stable") if detections.scores[k] >= lowest_score]
    for index in drawn:
        left, top, right, bottom = edges[index].tolist()
        cv2.rectangle(canvas, (left, top), (right, bottom), color_of(int(detections.labels[index])), thickness)
    for index in drawn:  # above all boxes, so that no line crosses a name
        score, label = float(detections.scores[index]), int(detections.labels[index])
        name = class_names[label] if label < len(class_names) else f"class {label}"
        if captions is not None:
            name = captions[index]
        text = f"{name} {100 * score:.0f}%" if show_scores else name
        left, top = edges[index, :2].tolist()
        _write_label_(canvas, text, (left, top), color_of(label), thickness)
    return canvas


def _write_label_(canvas: Image, text: str, corner: tuple[int, int], color: Bgr, thickness: int) -> None:
    """Write on a filled strip above the corner of a box, or inside the box where there is no room above."""
    scale = max(0.4, 0.28 * (thickness + 0.6))
    stroke = max(1, thickness // 2)
    (text_width, text_height), baseline = cv2.getTextSize(text, _FONT, scale, stroke)
    pad = 1 + thickness
    strip = text_height + baseline + pad
    left = max(0, min(corner[0], canvas.shape[1] - text_width - 2 * pad))
    top = corner[1] - strip if corner[1] >= strip else corner[1]
    cv2.rectangle(canvas, (left, top), (left + text_width + 2 * pad, top + strip), color, cv2.FILLED)
    blue, green, red = color
    ink = (0, 0, 0) if 0.114 * blue + 0.587 * green + 0.299 * red > 140 else (255, 255, 255)
    place = (left + pad, top + text_height + pad)
    cv2.putText(canvas, text, place, _FONT, scale, ink, stroke, cv2.LINE_AA)
