"""``eval --report``: the page about an evaluation."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from yolox.config import Experiment
    from yolox.data.coco_dataset import CocoDataset
    from yolox.evaluation.loop import EvaluationResult


def draw_report(path: Path, result: EvaluationResult, data: CocoDataset, experiment: Experiment, source: str) -> None:
    """Write the report of an evaluation; what goes wrong with it is told, since the evaluation itself is done.

    Args:
        path: The HTML file.
        result: What was found and what it is worth.
        data: The images.
        experiment: With the thresholds.
        source: What was evaluated, in one line.
    """
    from yolox.cpu.machine import read_machine
    from yolox.report.document import Judged, Report, write_report

    metrics, settings = result.metrics, experiment.eval
    ms = result.times.per_image_ms()
    facts = {
        "model": source,
        "data": f"{len(data)} images: {data.source}",
        "classes": f"{len(data.class_names)}",
        "AP": f"{metrics['AP']:.4f} (AP50 {metrics['AP50']:.4f}, AP75 {metrics['AP75']:.4f})"
        if result.coco.has_labels
        else "none: the images have no labels",
        "settings": f"confidence {settings.test_conf:g}, NMS {settings.nmsthre:g}, input {settings.test_size.height} x "
        f"{settings.test_size.width}",
        "time": f"{ms['total_ms']:.1f} ms an image: network {ms['forward_ms']:.1f}, suppression {ms['nms_ms']:.1f}",
        "machine": str(read_machine()),
    }
    judged = Judged(result, data, "the model")
    try:
        write_report(path, Report(f"Evaluation of {experiment.exp_name}", facts, splits={"val": data}, judged=judged))
    except Exception as error:  # noqa: BLE001 - the evaluation is done: its figures have to be told and written
        print(f"note: {path} was not written: {type(error).__name__}: {error}", file=sys.stderr)
    else:
        print(f"written: {path}")
