"""The page about a run: what stands in it, and that nothing in it can harm or be missing."""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from matplotlib.backend_bases import RendererBase
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from yolox.data.coco_dataset import CocoDataset
from yolox.data.dataset_paths import load_split, resolve_dataset
from yolox.data.sample_dataset import draw_sample_set
from yolox.errors import DataError
from yolox.evaluation.coco_metric import coco_metric
from yolox.evaluation.detections_file import read_detections, write_detections
from yolox.evaluation.loop import EvaluationResult, Times
from yolox.evaluation.matching import match_objects, score_curves
from yolox.report.document import Judged, Report, write_report
from yolox.report.figures import (
    confidence_figure,
    curves_figure,
    few_classes,
    labels_figure,
    png_of,
    precision_recall_figure,
    relative_boxes,
)
from yolox.structures import Batch, Detections, Targets

Touching = Callable[[Figure], list[tuple[str, str]]]
NASTY = "<script>alert(1)</script>$x^"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    draw_sample_set(folder, num_train=2, num_val=6)
    paths = resolve_dataset(folder)
    return load_split(paths.require("val"))


def renamed(data: CocoDataset, names: list[str]) -> CocoDataset:
    return replace(data, categories=tuple(enumerate(names, start=1)))


def labels_as_detections(data: CocoDataset, shift: float = 0.0) -> dict[int, Detections]:
    """The labels, every box moved to the right by a share of its width, with falling scores."""
    found = {}
    for index, image_id in enumerate(data.image_ids.tolist()):
        boxes, labels = data.objects(index)
        moved = boxes + np.array([1, 0, 1, 0]) * shift * (boxes[:, 2:3] - boxes[:, :1])
        scores = np.linspace(0.9, 0.5, len(labels), dtype=np.float32)
        found[image_id] = Detections(moved.astype(np.float32), scores, labels)
    return found


def judged(data: CocoDataset, shift: float = 0.0) -> Judged:
    detections = labels_as_detections(data, shift)
    return Judged(
        EvaluationResult(coco_metric(data.ground_truth_json(), detections), Times(), detections, 0), data, "x"
    )


def batch() -> Batch:
    targets = Targets(torch.tensor([[[32.0, 16.0, 20.0, 10.0]]]), torch.tensor([[2]]), torch.tensor([[True]]))
    pixels = torch.full((1, 3, 64, 64), 50, dtype=torch.uint8)
    return Batch(pixels, targets, torch.tensor([1]), torch.tensor([[64, 64]]), torch.tensor([0]))


def embedded(page: str) -> list[np.ndarray]:
    encoded = re.findall(r'src="data:image/(?:png|jpeg);base64,([^"]+)"', page)
    content = (np.frombuffer(base64.b64decode(text), np.uint8) for text in encoded)
    return [np.asarray(cv2.imdecode(item, cv2.IMREAD_COLOR)) for item in content]


def table_rows(page: str) -> dict[str, list[str]]:
    rows = [re.findall("<td>(.*?)</td>", row) for row in re.findall("<tr>(.*?)</tr>", page)]
    return {row[0]: row[1:] for row in rows if row}


def test_a_whole_report(data: CocoDataset, tmp_path: Path) -> None:
    epochs = [
        {"epoch": 1.0, "train/total": 5.0, "lr": 0.01},
        {"epoch": 2.0, "train/total": 4.0, "lr": 0.02, "val/AP": 0.1},
    ]
    report = Report(
        "Training of a model", {"model": "tiny"}, epochs, [("at first", batch())], {"val": data}, judged(data)
    )
    write_report(tmp_path / "report.html", report)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    titles = re.findall(r"<h2 id=\"part\d+\">(.*?)</h2>", page)
    assert titles == [
        "Summary",
        "Curves",
        "Precision and recall",
        "Confidence",
        "Confusion",
        "Predictions beside the truth",
        "Classes",
        "Labels",
        "Training images at first",
    ]
    assert "<script" not in page
    assert not re.search(r"https?:|src=\"(?!data:)", page), "nothing is loaded from elsewhere"
    pictures = embedded(page)
    assert all(picture.ndim == 3 and picture.std() > 5 for picture in pictures)
    assert len(pictures) == 5 + 2 * 6 + 1
    assert pictures[-1].shape == (384, 384, 3)  # the training image of 64 pixels, six times as large
    assert table_rows(page)["model"] == ["tiny"]


def test_the_class_table_has_the_numbers_of_the_evaluation(data: CocoDataset, tmp_path: Path) -> None:
    subject = judged(data, shift=0.2)  # IoU 0.8 / 1.2
    write_report(tmp_path / "report.html", Report("t", {}, splits={"val": data}, judged=subject))
    rows = table_rows((tmp_path / "report.html").read_text(encoding="utf-8"))
    for row in subject.result.coco.per_class:
        assert rows[row.name] == [f"{row.num_objects}", f"{100 * row.ap:.1f}", "100.0", "100.0", "100.0"]
        assert row.ap == pytest.approx(0.4)  # found at 0.50, 0.55, 0.60 and 0.65
    assert rows["all classes"][:2] == [f"{subject.result.coco.num_objects}", "40.0"]


def test_hostile_names_are_text(data: CocoDataset, tmp_path: Path) -> None:
    strange = renamed(data, [NASTY, "_hidden", "名前", "a\nb", "", "x" * 300])
    write_report(tmp_path / "report.html", Report(NASTY, {}, splits={"val": strange}, judged=judged(strange)))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;$x^" in page
    assert "名前" in page


def test_without_labels_or_evaluation_it_says_so(data: CocoDataset, tmp_path: Path) -> None:
    nothing = data.ground_truth_json() | {"annotations": []}
    found = labels_as_detections(data)
    empty = EvaluationResult(coco_metric(nothing, found), Times(), found, 0)
    write_report(tmp_path / "a.html", Report("t", {}, splits={"val": data}, judged=Judged(empty, data, "x")))
    write_report(tmp_path / "b.html", Report("t", {}, splits={"val": data}, missing="No AP was measured."))
    assert "have no labels" in (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "No AP was measured." in (tmp_path / "b.html").read_text(encoding="utf-8")


def test_the_rare_classes_of_many_become_one() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.integers(0, 9, (81, 81))
    matrix[:24, 0] += 1000
    small, names = few_classes(matrix, [f"c{index}" for index in range(80)])
    assert names == [*(f"c{index}" for index in range(24)), "56 others", "background"]
    assert small.sum() == matrix.sum()
    assert (small[:24, :24] == matrix[:24, :24]).all()
    assert small[24, 24] == matrix[24:80, 24:80].sum()
    assert small[25, 25] == matrix[80, 80]
    same, names = few_classes(matrix[:4, :4], ["a", "b", "c"])
    assert (same == matrix[:4, :4]).all()
    assert names == ["a", "b", "c", "background"]


def test_boxes_relative_to_their_images(data: CocoDataset) -> None:
    first = relative_boxes(data)[0]
    left, top, width, height = data.boxes_xywh[0]
    size = data.size(int(np.searchsorted(data.object_ends, 0, side="right") - 1))
    expected = [(left + width / 2) / size.width, (top + height / 2) / size.height]
    assert first == pytest.approx([*expected, width / size.width, height / size.height])


def test_figures_are_png_files(data: CocoDataset) -> None:
    content = png_of(precision_recall_figure(judged(data).result.coco))
    assert content.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", content[16:24])
    assert width > height > 300


@pytest.fixture
def touching(monkeypatch: pytest.MonkeyPatch) -> Touching:
    """Draws a figure and gives the pairs of its texts that lie over one another, or beside a title within 15 pixels."""
    drawn: dict[Text, Bbox] = {}  # ticks beyond the borders of an axis exist too, and are not drawn
    draw = Text.draw

    def record(text: Text, renderer: RendererBase) -> None:
        if text.get_visible() and text.get_text().strip():
            drawn[text] = text.get_window_extent(renderer)
        draw(text, renderer)

    def pairs(figure: Figure) -> list[tuple[str, str]]:
        drawn.clear()
        png_of(figure)
        titles = {axes.title for axes in figure.axes}
        boxes = [(text.get_text(), box.padded(15 * (text in titles), 0)) for text, box in drawn.items()]
        return [(a[0], b[0]) for a, b in combinations(boxes, 2) if a[1].overlaps(b[1])]

    monkeypatch.setattr(Text, "draw", record)
    return pairs


@pytest.mark.parametrize(("rate", "loss"), [(0.01, 3e9), (4e-4, 5.8), (1e-7, 2e-6)])
def test_no_text_of_the_curves_touches_another(rate: float, loss: float, touching: Touching) -> None:
    rows = [
        {"epoch": float(epoch), "train/total": loss / epoch, "lr": rate * (1 - epoch / 61), "val/AP": epoch / 100}
        for epoch in range(1, 61)
    ]
    assert touching(curves_figure(rows)) == []


def test_no_text_of_the_other_figures_touches_another(data: CocoDataset, touching: Touching) -> None:
    result = judged(data, 0.2).result
    curves = score_curves(match_objects(data.ground_truth_json(), result.detections), len(data.class_names))
    figures = [
        precision_recall_figure(result.coco),
        confidence_figure(curves, data.class_names),
        labels_figure({"train": data, "val": data}),
    ]
    assert [touching(figure) for figure in figures] == [[], [], []]


def test_detections_survive_their_file(data: CocoDataset, tmp_path: Path) -> None:
    found = labels_as_detections(data)
    found[999] = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    write_detections(tmp_path / "d.npz", found, 7)
    again, epoch = read_detections(tmp_path / "d.npz")
    assert epoch == 7
    assert list(again) == list(found)
    for number, item in found.items():
        np.testing.assert_array_equal(again[number].boxes_xyxy, item.boxes_xyxy)
        np.testing.assert_array_equal(again[number].scores, item.scores)
        np.testing.assert_array_equal(again[number].labels, item.labels)
    (tmp_path / "d.npz").write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(DataError, match="holds no detections"):
        read_detections(tmp_path / "d.npz")
