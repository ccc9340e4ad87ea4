"""The report as HTML: one file that needs nothing else, every picture embedded."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yolox.data.coco_dataset import CocoDataset
from yolox.errors import printable
from yolox.evaluation.loop import EvaluationResult, only_images
from yolox.evaluation.matching import ScoreCurves, confusion_matrix, match_objects, score_curves
from yolox.files import write_text
from yolox.report.figures import (
    EpochRow,
    confidence_figure,
    confusion_figure,
    curves_figure,
    few_classes,
    labels_figure,
    png_of,
    precision_recall_figure,
)
from yolox.report.pictures import jpeg_of, prediction_pairs, training_pictures
from yolox.structures import Batch

_NUM_PAIRS = 6
_NUM_CONFUSIONS = 12
_USUAL_CONFIDENCE = 0.25  # what ``predict`` draws from, where no confidence is the best one
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; background: #fff; max-width: 1180px; margin: 2em auto;
  padding: 0 1em; }
h1 { font-size: 1.7em; } h2 { font-size: 1.25em; margin-top: 2.2em; border-bottom: 1px solid #ddd; }
nav a { margin-right: 1em; } img { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .2em .8em; border-bottom: 1px solid #eee; text-align: right; }
td:first-child, th:first-child { text-align: left; overflow-wrap: anywhere; } th { background: #f6f6f6; }
table.names td:nth-child(2), table.names th:nth-child(2) { text-align: left; }
table.facts td { text-align: left; vertical-align: top; }
table.facts td:first-child { color: #666; white-space: nowrap; }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(270px, 1fr)); gap: 10px; }
figure { margin: 0 0 14px; }
figure.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 4px; align-items: start; }
figcaption { grid-column: 1 / -1; color: #666; font-size: 13px; overflow-wrap: anywhere; }
"""


@dataclass(frozen=True)
class Judged:
    """An evaluation.

    Args:
        result: AP and detections.
        data: The images and their labels.
        of: What was evaluated, within a sentence: ``epoch 12``.
    """

    result: EvaluationResult
    data: CocoDataset
    of: str


@dataclass(frozen=True)
class Report:
    """What a report is made from.

    Args:
        title: Its heading.
        facts: The summary, names to values.
        epochs: The rows of ``results.csv``; empty where nothing was trained.
        batches: Training batches with what they show.
        splits: The data sets by name, for the statistics of their labels.
        judged: The evaluation; None where there is none to show.
        missing: Why ``judged`` is None, a sentence.
    """

    title: str
    facts: Mapping[str, str]
    epochs: Sequence[EpochRow] = ()
    batches: Sequence[tuple[str, Batch]] = ()
    splits: Mapping[str, CocoDataset] = field(default_factory=dict)
    judged: Judged | None = None
    missing: str = ""


def write_report(path: Path, report: Report) -> None:
    """Write a report as one HTML file without scripts, with all pictures in it."""
    names = next(iter(report.splits.values())).class_names
    sections = list(_sections(report, names))
    links = " ".join(f'<a href="#part{number}">{_text(title)}</a>' for number, (title, _) in enumerate(sections))
    body = "\n".join(
        f'<h2 id="part{number}">{_text(title)}</h2>\n{content}' for number, (title, content) in enumerate(sections)
    )
    head = f'<meta charset="utf-8"><title>{_text(report.title)}</title><style>{_STYLE}</style>'
    page = f"<!DOCTYPE html>\n<html lang='en'><head>{head}</head><body>\n<h1>{_text(report.title)}</h1>\n"
    write_text(path, f"{page}<nav>{links}</nav>\n{body}\n</body></html>\n")


def _sections(report: Report, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield title and content of each part."""
    yield "Summary", _table(None, [(name, value) for name, value in report.facts.items()], "facts")
    if report.epochs:
        yield "Curves", _picture(png_of(curves_figure(report.epochs)), "losses, learning rate and AP over the epochs")
    if report.judged is None:
        yield "Evaluation", f"<p>{_text(report.missing)}</p>"
    elif not report.judged.result.coco.has_labels:
        yield "Evaluation", "<p>The images have no labels, so there is no AP, precision or recall.</p>"
    else:
        yield from _evaluation(report.judged)
    yield (
        "Labels",
        _picture(png_of(labels_figure(report.splits)), "statistics of the labels")
        + _note("Crowd regions are left out. Sizes and centres are those of all splits together; darker is more."),
    )
    for title, batch in report.batches:
        images = (_picture(jpeg_of(image), title, "jpeg") for image in training_pictures(batch, names))
        yield (
            f"Training images {title}",
            f'<div class="sheet">{"".join(images)}</div>'
            + _note("As the network gets them, after augmentation, with the boxes that it is to learn."),
        )


def _evaluation(judged: Judged) -> Iterator[tuple[str, str]]:
    """Yield the parts about what was found, all of the same detections."""
    result, data = judged.result, judged.data
    names = data.class_names
    matches = match_objects(only_images(data.ground_truth_json(), set(result.detections)), result.detections)
    curves = score_curves(matches, len(names))
    threshold = _USUAL_CONFIDENCE if curves.best is None else float(curves.thresholds[curves.best])
    at = round(threshold * (len(curves.thresholds) - 1))
    of = f"Of {judged.of}, {len(matches)} images."
    yield (
        "Precision and recall",
        _picture(png_of(precision_recall_figure(result.coco)), "precision-recall")
        + _note(
            f"{of} The area under a curve is its AP50, the evaluation's own; precision is interpolated as COCO does it."
        ),
    )
    best = (
        "No object is found at any confidence."
        if curves.best is None
        else f"The best threshold is {threshold:.3f} (--conf {threshold:.3f}): its mean F1 is the highest."
    )
    yield (
        "Confidence",
        _picture(png_of(confidence_figure(curves, names)), "precision, recall, F1")
        + _note(
            f"{of} {best} Detections count from the confidence on, at IoU 0.5. The means are those of the classes "
            "with objects, the precision's of those with detections as well."
        ),
    )
    yield "Confusion", _confusion(confusion_matrix(matches, len(names), threshold), names, threshold, of)
    yield "Predictions beside the truth", _pairs(judged, threshold)
    yield (
        "Classes",
        _class_table(result, curves, at)
        + _note(
            f"{of} AP and AP50 are COCO's, in per cent; precision and recall, in per cent, those at confidence "
            f"{threshold:.3f} and IoU 0.5: diagonal / column and diagonal / row of the confusion matrix."
        ),
    )


def _confusion(matrix: NDArray[np.int64], names: Sequence[str], threshold: float, of: str) -> str:
    few, few_names = few_classes(matrix, names)
    picture = _picture(png_of(confusion_figure(few, few_names)), "confusion matrix")
    note = _note(
        f"{of} Objects (rows) and what they were called (columns) at confidence {threshold:.3f} and IoU 0.5. Last row: "
        "detections where nothing is labelled. Last column: objects that were not found."
        + (" The most frequent classes are shown, all others as one." if len(few_names) < len(matrix) else "")
    )
    mixed = matrix.copy()
    np.fill_diagonal(mixed, 0)
    mixed[-1], mixed[:, -1] = 0, 0
    order = np.argsort(-mixed, axis=None, kind="stable")[:_NUM_CONFUSIONS]
    pairs = [divmod(int(place), len(matrix)) for place in order]
    rows = [(names[row], names[column], str(mixed[row, column])) for row, column in pairs if mixed[row, column]]
    table = "<h3>Most often confused</h3>" + _table(("labelled", "called", "objects"), rows, "names") if rows else ""
    return picture + note + table


def _pairs(judged: Judged, threshold: float) -> str:
    figures = [
        f'<figure class="pair">{_picture(jpeg_of(pair.truth), "labels", "jpeg")}'
        f"{_picture(jpeg_of(pair.found), 'predictions', 'jpeg')}<figcaption>{_text(pair.name)}</figcaption></figure>"
        for pair in prediction_pairs(judged.data, judged.result.detections, threshold, _NUM_PAIRS)
    ]
    note = _note(f"Left the labels, right what was found with a confidence of at least {threshold:.3f}.")
    return note + "".join(figures)


def _class_table(result: EvaluationResult, curves: ScoreCurves, at: int) -> str:
    rows = [
        (row.name, f"{row.num_objects}", *map(_percent, (row.ap, row.ap50, precision, recall)))
        for row, precision, recall in zip(
            result.coco.per_class, curves.precision[:, at], curves.recall[:, at], strict=True
        )
    ]
    means = (result.metrics["AP"], result.metrics["AP50"], curves.mean_precision[at], curves.mean_recall[at])
    rows.insert(0, ("all classes", f"{result.coco.num_objects}", *map(_percent, means)))
    return _table(("class", "objects", "AP", "AP50", "precision", "recall"), rows)


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f}"


def _text(value: str) -> str:
    """Return text that a browser shows as it is, whatever a file or class is called."""
    return html.escape(printable(value))


def _note(text: str) -> str:
    return f"<p>{_text(text)}</p>"


def _table(header: Sequence[str] | None, rows: Sequence[Sequence[str]], kind: str = "") -> str:
    head = "" if header is None else "<tr>" + "".join(f"<th>{_text(title)}</th>" for title in header) + "</tr>"
    lines = ("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<table class="{kind}">{head}{"".join(lines)}</table>'


def _picture(content: bytes, what: str, kind: str = "png") -> str:
    return f'<img alt="{_text(what)}" src="data:image/{kind};base64,{base64.b64encode(content).decode()}">'
