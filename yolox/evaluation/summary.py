"""Evaluation results as text: the twelve COCO lines, the tables of classes, the times."""

from __future__ import annotations

import math
from collections.abc import Sequence

from yolox.evaluation.coco_metric import CocoResult
from yolox.evaluation.loop import EvaluationResult, Times
from yolox.tables import text_table

_ROWS = (
    ("AP", "0.50:0.95", "all", 100),
    ("AP50", "0.50", "all", 100),
    ("AP75", "0.75", "all", 100),
    ("APs", "0.50:0.95", "small", 100),
    ("APm", "0.50:0.95", "medium", 100),
    ("APl", "0.50:0.95", "large", 100),
    ("AR1", "0.50:0.95", "all", 1),
    ("AR10", "0.50:0.95", "all", 10),
    ("AR100", "0.50:0.95", "all", 100),
    ("ARs", "0.50:0.95", "small", 100),
    ("ARm", "0.50:0.95", "medium", 100),
    ("ARl", "0.50:0.95", "large", 100),
)


def coco_lines(result: CocoResult) -> str:
    """Return the twelve lines in the words of the COCO tools; -1.000 means that no such object is labelled."""
    lines = []
    for key, iou, area, most in _ROWS:
        title = "Average Precision  (AP)" if key.startswith("AP") else "Average Recall     (AR)"
        value = result.metrics[key]
        shown = -1.0 if math.isnan(value) else value
        lines.append(f" {title} @[ IoU={iou:<9} | area={area:>6s} | maxDets={most:>3d} ] = {shown:0.3f}")
    return "\n".join(lines)


def class_table(names: Sequence[str], values: Sequence[float], title: str, num_pairs: int = 3) -> str:
    """Return classes beside their values in per cent, several pairs to a row; '-' where nothing is labelled.

    Args:
        names: Class names.
        values: 0...1 or NaN, one for each name.
        title: Head of the value columns, for instance ``AP``.
        num_pairs: Pairs of name and value side by side.
    """
    cells = [
        (name, "-" if math.isnan(value) else f"{100 * value:.3f}") for name, value in zip(names, values, strict=True)
    ]
    num_pairs = max(1, min(num_pairs, len(cells)))
    cells += [("", "")] * (-len(cells) % num_pairs)
    rows = [
        [cell for pair in cells[start : start + num_pairs] for cell in pair]
        for start in range(0, len(cells), num_pairs)
    ]
    return text_table(["class", title] * num_pairs, rows, left=range(0, 2 * num_pairs, 2))


def time_line(times: Times) -> str:
    """Return mean times per image over all batches."""
    ms = times.per_image_ms()
    return (
        f"Average forward time: {ms['forward_ms']:.2f} ms, NMS time: {ms['nms_ms']:.2f} ms, "
        f"total: {ms['total_ms']:.2f} ms per image (all {times.num_images} images; "
        f"waiting for images besides: {ms['loading_ms']:.2f} ms)"
    )


def summary(result: EvaluationResult) -> str:
    """Return everything that the evaluation tool prints in the end."""
    coco = result.coco
    parts = [time_line(result.times)]
    if result.num_missing:
        parts.append(f"{result.num_missing} images could not be read; the figures are those of {coco.num_images}.")
    if coco.has_labels:
        parts.append(coco_lines(coco))
        names = [row.name for row in coco.per_class]
        parts.append("per class AP:\n" + class_table(names, [row.ap for row in coco.per_class], "AP"))
        parts.append("per class AR:\n" + class_table(names, [row.ar for row in coco.per_class], "AR"))
    else:
        parts.append(
            f"No labels: the {coco.num_images} images have no labelled object, so AP and AR are undefined "
            f"({coco.num_detections} detections)."
        )
    return "\n".join(parts)
