"""The lines of docs/first-detector.md, with one set of 50 pictures as six tools write its labels."""

from __future__ import annotations

import json
import shlex
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from doc_pages import blocks
from doc_shell import check_pip, place_weights, served

from yolox import YOLOX
from yolox.data.dataset_paths import load_split, resolve_dataset
from yolox.data.sample_dataset import CLASS_NAMES, draw_sample_set
from yolox.tools import command

PAGE = "docs/first-detector.md"
TINY = ["-b", "8", "--num_workers", "0", "--logger", "none", "max_epoch=1", "input_size=64", "test_size=64"]
pytestmark = [pytest.mark.backends, pytest.mark.processes]
Write = Callable[[Path, Path], None]


def labels_of(drawn: Path) -> dict[str, Any]:
    return json.loads((drawn / "annotations" / "instances_train2017.json").read_text())


def objects_of(content: dict[str, Any]) -> Iterator[tuple[dict[str, Any], list[tuple[int, list[int]]]]]:
    """Yield every image and its objects: class index and left, top, width, height."""
    for image in content["images"]:
        yield (
            image,
            [(row["category_id"] - 1, row["bbox"]) for row in content["annotations"] if row["image_id"] == image["id"]],
        )


def yolo_rows(image: dict[str, Any], objects: list[tuple[int, list[int]]]) -> str:
    width, height = image["width"], image["height"]
    rows = ((k, (x + w / 2) / width, (y + h / 2) / height, w / width, h / height) for k, (x, y, w, h) in objects)
    return "".join(f"{k} {cx:.6f} {cy:.6f} {w:.6f} {h:.6f}\n" for k, cx, cy, w, h in rows)


def cvat(drawn: Path, photos: Path) -> None:
    """A task exported as "COCO 1.0" with its images."""
    shutil.copytree(drawn / "train2017", photos / "images" / "default")
    (photos / "annotations").mkdir()
    content = labels_of(drawn)
    content["licenses"] = [{"name": "", "id": 0, "url": ""}]
    for row in content["annotations"]:
        row |= {"segmentation": [], "attributes": {"occluded": False, "rotation": 0.0}}
    (photos / "annotations" / "instances_default.json").write_text(json.dumps(content))


def label_studio(drawn: Path, photos: Path) -> None:
    """A project exported as "COCO with images": classes from 0, a backslash from Windows in the names."""
    shutil.copytree(drawn / "train2017", photos / "images")
    content = labels_of(drawn)
    for image in content["images"]:
        image["file_name"] = "images\\" + image["file_name"]
    for row in content["annotations"]:
        row |= {"category_id": row["category_id"] - 1, "segmentation": [], "ignore": 0}
    content["categories"] = [{"id": k, "name": name} for k, name in enumerate(CLASS_NAMES)]
    (photos / "result.json").write_text(json.dumps(content, indent=2))


def labelme(drawn: Path, photos: Path) -> None:
    """What labelme's own ``labelme2coco.py`` writes: outlines, and a class for the background."""
    shutil.copytree(drawn / "train2017", photos / "JPEGImages")
    content = labels_of(drawn)
    for image in content["images"]:
        image |= {"file_name": f"JPEGImages/{image['file_name']}", "license": 0, "url": None, "date_captured": None}
    for row in content["annotations"]:
        x, y, width, height = row["bbox"]
        row["bbox"] = [float(value) for value in row["bbox"]]
        row["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
    background = {"supercategory": None, "id": 0, "name": "_background_"}
    content["categories"] = [background, *({"supercategory": None, **row} for row in content["categories"])]
    (photos / "annotations.json").write_text(json.dumps(content))


def ultralytics(drawn: Path, photos: Path) -> None:
    """``data.yaml`` with one split, whose labels lie in the place of its images."""
    shutil.copytree(drawn / "train2017", photos / "images" / "train")
    (photos / "labels" / "train").mkdir(parents=True)
    for image, objects in objects_of(labels_of(drawn)):
        path = (photos / "labels" / "train" / image["file_name"]).with_suffix(".txt")
        path.write_text(yolo_rows(image, objects))
    names = "".join(f"  {k}: {name}\n" for k, name in enumerate(CLASS_NAMES))
    (photos / "data.yaml").write_text(f"path: .\ntrain: images/train\nnames:\n{names}")


def labelimg(drawn: Path, photos: Path) -> None:
    """YOLO text files and ``classes.txt`` beside the images; none for an image without objects."""
    shutil.copytree(drawn / "train2017", photos)
    (photos / "classes.txt").write_text("".join(f"{name}\n" for name in CLASS_NAMES))
    for image, objects in objects_of(labels_of(drawn)):
        if objects:
            (photos / image["file_name"]).with_suffix(".txt").write_text(yolo_rows(image, objects))


def voc(drawn: Path, photos: Path) -> None:
    """Pascal VOC XML files beside the images; pixels count from 1."""
    shutil.copytree(drawn / "train2017", photos)
    for image, objects in objects_of(labels_of(drawn)):
        name = image["file_name"]
        text = f"<annotation>\n\t<folder>photos</folder>\n\t<filename>{name}</filename>\n\t<size>\n"
        text += f"\t\t<width>{image['width']}</width>\n\t\t<height>{image['height']}</height>\n"
        text += "\t\t<depth>3</depth>\n\t</size>\n"
        for k, (x, y, width, height) in objects:
            text += f"\t<object>\n\t\t<name>{CLASS_NAMES[k]}</name>\n\t\t<pose>Unspecified</pose>\n\t\t<bndbox>\n"
            text += f"\t\t\t<xmin>{x + 1}</xmin>\n\t\t\t<ymin>{y + 1}</ymin>\n\t\t\t<xmax>{x + width}</xmax>\n"
            text += f"\t\t\t<ymax>{y + height}</ymax>\n\t\t</bndbox>\n\t</object>\n"
        (photos / name).with_suffix(".xml").write_text(text + "</annotation>\n")


FORMATS: tuple[Write, ...] = (cvat, label_studio, labelme, ultralytics, labelimg, voc)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "set"
    draw_sample_set(folder, 50, 1)
    return folder


@pytest.fixture
def place(tmp_path: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, a new photograph, and published weights that were placed by hand."""
    place_weights(tmp_path / "cache")
    monkeypatch.setenv("YOLOX_CACHE", str(tmp_path / "cache"))
    work = tmp_path / "work"
    work.mkdir()
    shutil.copy(next((drawn / "val2017").iterdir()), work / "new.jpg")
    monkeypatch.chdir(work)
    return work


def run_commands(place: Path) -> None:
    """Run the page's commands, a training of one epoch and one method of inference instead of all."""
    commands = blocks(PAGE, "bash")[0].text.splitlines()
    assert len(commands) <= 8
    extra = {"train": TINY, "optimize": ["--methods", "native_int8", "-b", "1"], "predict": ["--conf", "0.001"]}
    for block in blocks(PAGE, "bash"):
        for line in block.text.splitlines():
            if line.startswith("pip "):
                check_pip(shlex.split(line))
    for line in commands[1:-2]:
        words = shlex.split(line)[1:]
        assert command.main([*words, *extra.get(words[0], [])]) == 0, line
    assert len(list((place / "found").rglob("*.jpg"))) == 50
    service, request = commands[-2:]
    with served([*shlex.split(service)[1:], "--port", "0"]) as address:
        photograph = (place / shlex.split(request)[2].removeprefix("@")).read_bytes()
        with urllib.request.urlopen(f"{address}/predict", data=photograph, timeout=300) as answer:
            assert json.load(answer)["objects"] is not None


def run_python(place: Path) -> None:
    """Run the page's Python, with the same shortcuts."""
    code = blocks(PAGE, "python")[0].text
    assert len(code.splitlines()) <= 10
    names = execute(code)
    assert names["fast"].class_names == names["trained"].class_names
    assert isinstance(names["fast"], YOLOX)
    assert (place / "found.jpg").is_file()


def execute(code: str) -> dict[str, Any]:
    """Run Python of a page with a training of one epoch and one method of inference, and return its names."""
    tiny = "epochs=1, batch_size=8, num_workers=0, logger='none', input_size=64, test_size=64"
    code = code.replace("epochs=100", tiny).replace('"deployed"', '"deployed", methods=["native_int8"], batch_size=1')
    names: dict[str, Any] = {}
    exec(compile(code, "page", "exec"), names)
    return names


@pytest.mark.parametrize("write", FORMATS, ids=lambda write: write.__name__)
def test_each_format_says_the_same(write: Write, place: Path, drawn: Path) -> None:
    write(drawn, place / "photos")
    assert command.main(shlex.split("doctor photos --val_fraction 0.2")) == 0
    found = resolve_dataset(place / "photos", val_fraction=0.2)
    train, val = load_split(found.require("train")), load_split(found.require("val"))
    assert set(train.class_names) == set(val.class_names) == set(CLASS_NAMES)
    assert len(train) + len(val) == 50
    content = labels_of(drawn)
    for image, expected in objects_of(content):
        data = next(part for part in (train, val) if image["file_name"] in names_of(part))
        boxes, labels = data.objects(names_of(data).index(image["file_name"]))
        told = {(CLASS_NAMES[k], x, y, x + width, y + height) for k, (x, y, width, height) in expected}
        rounded = [[round(float(edge)) for edge in box] for box in boxes]
        assert {(data.class_names[k], *box) for k, box in zip(labels, rounded, strict=True)} == told


def names_of(data: Any) -> list[str]:
    return [Path(data.file_name(i).replace("\\", "/")).name for i in range(len(data))]


@pytest.mark.parametrize(("write", "run"), [(label_studio, run_commands), (voc, run_python)])
def test_from_photographs_to_a_detector(write: Write, run: Callable[[Path], None], place: Path, drawn: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("uvicorn")
    write(drawn, place / "photos")
    run(place)


@pytest.mark.slow
@pytest.mark.parametrize("write", FORMATS, ids=lambda write: write.__name__)
def test_from_photographs_to_a_detector_in_every_format(write: Write, place: Path, drawn: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("uvicorn")
    write(drawn, place / "photos")
    run_commands(place)
