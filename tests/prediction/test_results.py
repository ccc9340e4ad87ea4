from __future__ import annotations

import csv
import json
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolox.data.formats.checks import check_split
from yolox.data.formats.coco_json import describe_coco
from yolox.data.formats.yolo_labels import pixel_box, read_label_file
from yolox.errors import UsageError, YoloxError
from yolox.files import mark_input_files, mark_inputs
from yolox.prediction.background import write_behind
from yolox.prediction.results import Boxes, Result
from yolox.prediction.tracking import track
from yolox.prediction.writers import FORMATS, ResultWriter
from yolox.structures import Size
from yolox.tools.arguments import run_tool

NAMES = ("apple", "bolt")


def result(name: str = "a.png", index: int = 0, shift: float = 0.0, source: str | None = None) -> Result:
    image = np.zeros((40, 80, 3), np.uint8)
    image[10:20, 20:40] = 200
    boxes = Boxes(
        np.array([[20, 10, 40, 20], [-5, 30, 10, 60]], np.float32) + np.float32(shift),
        np.array([0.9, 0.5], np.float32),
        np.array([1, 0]),
        ("bolt", "apple"),
    )
    size, rate = Size(*image.shape[:2]), 10.0 if source else None
    return Result(image, size, boxes, NAMES, name, index=index, elapsed_ms=2.5, source=source, rate=rate)


def test_values() -> None:
    found = result()
    assert found.boxes.xywh.tolist() == [[20, 10, 20, 10], [-5, 30, 15, 30]]
    described = json.loads(json.dumps(found.to_dict()))
    assert (described["height"], described["width"]) == (40, 80)
    assert described["objects"][0] == {
        "name": "bolt",
        "label": 1,
        "score": pytest.approx(0.9),
        "box_xyxy": [20, 10, 40, 20],
    }
    rows = found.to_coco(7, category_ids=(11, 22))
    assert [(row["image_id"], row["category_id"], row["bbox"]) for row in rows] == [
        (7, 22, [20, 10, 20, 10]),
        (7, 11, [-5, 30, 15, 30]),
    ]
    assert [(name, pixels.shape) for name, pixels in found.crops()] == [("bolt", (10, 20, 3)), ("apple", (10, 10, 3))]
    assert not np.array_equal(found.plot(), found.image)
    assert "bolt" in repr(found)
    assert len(repr(found)) < 500, "neither pixels nor the classes that were not found"


def test_save_writes_the_picture_and_refuses_unknown_formats(tmp_path: Path) -> None:
    path = result().save(tmp_path / "new" / "out.png")
    image = cv2.imread(str(path))
    assert image is not None
    assert np.array_equal(image, result().plot())
    with pytest.raises(YoloxError, match=r"ends in \.jpg or \.png"):
        result().save(tmp_path / "out.txt")


def test_supervision() -> None:
    pytest.importorskip("supervision")
    detections = result().to_supervision()
    assert detections.xyxy.tolist() == [[20, 10, 40, 20], [-5, 30, 10, 60]]
    assert detections.class_id.tolist() == [1, 0]
    assert detections.data["class_name"].tolist() == ["bolt", "apple"]


def test_every_format(tmp_path: Path) -> None:
    with ResultWriter(tmp_path, list(FORMATS)) as writer:
        for number, name in enumerate(("a.png", "deep/a.png", "a.png", "../b.jpg")):
            writer.write(result(name, number))
    pictures = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*") if "crops" not in path.parts}
    assert pictures == {
        *("a.png", "deep/a.png", "a_2.png", "_/b.jpg"),
        *("labels/a.txt", "labels/deep/a.txt", "labels/a_2.txt", "labels/_/b.txt"),
        *("predictions.csv", "predictions.json"),
    }
    coco = json.loads((tmp_path / "predictions.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == ["a.png", "deep/a.png", "a_2.png", "_/b.jpg"]
    assert len(coco["annotations"]) == 8
    assert [row["id"] for row in coco["annotations"]] == list(range(1, 9))
    assert coco["annotations"][0]["bbox"] == [20, 10, 20, 10]
    assert coco["categories"] == [{"id": 1, "name": "apple"}, {"id": 2, "name": "bolt"}]
    label, x, y, width, height, score = (tmp_path / "labels" / "a.txt").read_text().splitlines()[0].split()
    assert (label, float(x), float(y), float(width), float(height)) == ("1", 0.375, 0.375, 0.25, 0.25)
    assert float(score) == pytest.approx(0.9)
    rows = list(csv.DictReader((tmp_path / "predictions.csv").read_text().splitlines()))
    assert len(rows) == 8
    assert (rows[0]["image"], rows[0]["name"], rows[0]["left"]) == ("a.png", "bolt", "20.00")
    assert cv2.imread(str(tmp_path / "crops" / "bolt" / "a_1.png")).shape == (10, 20, 3)


@given(
    st.lists(
        st.lists(
            st.tuples(*[st.integers(0, 60)] * 2, *[st.integers(2, 20)] * 2, st.integers(0, 1)), max_size=4, unique=True
        ),
        min_size=1,
        max_size=3,
    )
)
def test_what_is_written_is_read_as_a_data_set_with_the_same_boxes(images: list[list[tuple[int, ...]]]) -> None:
    """As COCO and as YOLO files, whose six digits are exact to a thousandth of a pixel here."""
    with tempfile.TemporaryDirectory() as folder:
        root, size = Path(folder), Size(80, 80)
        with ResultWriter(root, ["coco", "yolo"]) as writer:
            for number, rows in enumerate(images):
                left, top, width, height, labels = np.array(rows, np.int64).reshape(-1, 5).T
                xyxy = np.stack([left, top, left + width, top + height], axis=1).astype(np.float32)
                called = tuple(NAMES[label] for label in labels)
                boxes = Boxes(xyxy, np.full(len(rows), 0.5, np.float32), labels, called)
                pixels = np.zeros((*size, 3), np.uint8)
                writer.write(Result(pixels, size, boxes, NAMES, f"{number}.png", index=number))
                cv2.imwrite(str(root / f"{number}.png"), pixels)
        content = json.loads((root / "predictions.json").read_text())
        data = check_split(describe_coco(content, "predictions", [root]))
        assert data.class_names == NAMES
        for number, rows in enumerate(images):
            found, labels = data.objects(number)
            expected = [[x, y, x + w, y + h] for x, y, w, h, _ in rows]
            np.testing.assert_allclose(found, np.array(expected).reshape(-1, 4), atol=1e-3)
            assert labels.tolist() == [row[4] for row in rows]
            path = root / "labels" / f"{number}.txt"
            lines = [line.rpartition(" ")[0] for line in path.read_text().splitlines()]  # without the score
            path.write_text("\n".join(lines))
            read = [(line.label, *pixel_box(line.values, size)) for line in read_label_file(path, 2)]
            ours = [(row[4], *row[:4]) for row in rows]
            np.testing.assert_allclose(np.array(read).reshape(-1, 5), np.array(ours).reshape(-1, 5), atol=1e-3)


def test_a_crash_leaves_no_half_written_file(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), ResultWriter(tmp_path, ["pictures", "coco", "csv"]) as writer:
        writer.write(result("film_000000.jpg", source="film.avi"))
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stopped", [KeyboardInterrupt, SystemExit])
def test_what_was_found_before_a_stop_is_kept(tmp_path: Path, stopped: type[BaseException]) -> None:
    with pytest.raises(stopped), ResultWriter(tmp_path, ["csv"]) as writer:
        writer.write(result())
        raise stopped
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 1 + 2


def test_results_of_one_name_are_numbered(tmp_path: Path) -> None:
    with ResultWriter(tmp_path, ["csv"]) as writer:
        for number, name in enumerate(["a.png", "a_2.png", "a.png", "a.png", "deep/a.png", "a_2.png"]):
            writer.write(result(name, number))
    rows = list(csv.DictReader((tmp_path / "predictions.csv").read_text().splitlines()))
    names = ["a.png", "a_2.png", "a_3.png", "a_4.png", "deep/a.png", "a_2_2.png"]
    assert list(dict.fromkeys(row["image"] for row in rows)) == names


def test_inputs_are_never_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.png", "film.mp4", "film.avi"):
        (tmp_path / name).write_bytes(b"mine")

    def body() -> None:
        mark_input_files([tmp_path / "film.avi"])
        ResultWriter(tmp_path).check(["film.avi"])

    assert run_tool(body) == 2
    assert "film.mp4' is an input of this command" in capsys.readouterr().err

    def write() -> None:
        mark_inputs(tmp_path / "a.png")
        with ResultWriter(tmp_path) as writer:
            writer.write(result("a.png"))

    def write_in_another_thread() -> None:
        mark_inputs(tmp_path / "a.png")
        with ResultWriter(tmp_path) as writer:
            list(write_behind([result("a.png")], writer.write, 1))

    assert run_tool(write) == run_tool(write_in_another_thread) == 2
    assert (tmp_path / "a.png").read_bytes() == b"mine"
    ResultWriter(tmp_path).check(["a.png"])  # another run has other inputs
    with pytest.raises(UsageError, match=r"unknown format 'pictur'.*Did you mean 'pictures'"):
        ResultWriter(tmp_path, ["pictur"])


@pytest.mark.filterwarnings("ignore")
def test_tracks_follow_objects() -> None:
    pytest.importorskip("trackers")
    moving = (result("f.jpg", index, shift=float(index), source="film.avi") for index in range(8))
    followed = list(track(moving))
    last = [one.boxes.track_ids for one in followed[-2:]]
    assert last[0] is not None
    assert last[1] is not None
    assert last[0][0] == last[1][0] >= 0
    assert f"bolt #{last[1][0]}" in followed[-1].boxes.captions
    assert followed[-1].to_dict()["objects"][0]["track_id"] == last[1][0]
