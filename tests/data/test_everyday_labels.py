"""Labels as people really have them: encodings, endings, names, lists; right, repaired with a count, or refused."""

from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from label_files import coco, codes, image, index, train, voc, yolo

from yolox.data.cache import open_cache
from yolox.data.dataset_paths import default_data_dir, load_split, resolve_dataset
from yolox.data.formats.checks import MAX_CLASSES, check_split
from yolox.data.formats.coco_json import describe_coco
from yolox.data.image_source import ImageSource
from yolox.data.inspection import inspect_images
from yolox.data.report import report_dataset
from yolox.errors import DataError, UsageError, YoloxError, printable
from yolox.structures import Size
from yolox.text_files import read_text, read_yaml


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_encodings_with_and_without_mark(tmp_path: Path, encoding: str) -> None:
    yolo(tmp_path)
    for name in ("labels/x.txt", "data.yaml"):
        path = tmp_path / name
        text = path.read_text().replace("\n", "\r\n")
        path.write_bytes(text.encode(encoding))
    data = train(tmp_path)
    assert data.class_names == ("a", "b")
    np.testing.assert_allclose(data.objects(0)[0], [[30, 10, 50, 30]])


def test_another_encoding_is_named(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes("数据/001.png".encode("gbk"))
    with pytest.raises(DataError, match=r"list\.txt' is not UTF-8 text \(byte 0\).*Save it as UTF-8"):
        read_text(path, "a list")
    with pytest.raises(UsageError):
        read_text(path, "a list", error=UsageError)


@pytest.mark.parametrize("folder", ["labels", "label", "Labels"])
@pytest.mark.parametrize("ending", [".txt", ".TXT", ".Txt"])
def test_label_folders_and_endings(tmp_path: Path, folder: str, ending: str) -> None:
    yolo(tmp_path)
    (tmp_path / "labels").rename(tmp_path / folder)
    for path in (tmp_path / folder).iterdir():
        path.rename(path.with_suffix(ending))
    data = train(tmp_path)
    assert len(data.labelled()) == 2
    assert codes(data) == (["labels-elsewhere"] if folder == "label" else [])


def test_labels_of_nested_images(tmp_path: Path) -> None:
    yolo(tmp_path, "train/one/x.png", "train/two/x.png", yaml="train: images/train\nval: images/train\nnames: [a, b]\n")
    (tmp_path / "labels" / "train" / "two" / "x.txt").write_text("0 0.5 0.5 1 1\n")
    data = train(tmp_path)
    assert [data.objects(i)[1].tolist() for i in range(2)] == [[1], [0]]


def test_no_label_file_at_all_is_never_background(tmp_path: Path) -> None:
    yolo(tmp_path)
    (tmp_path / "labels").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"none of the 2 images has a label file \(looked for 'x\.txt'"):
        train(tmp_path)


def test_composed_and_decomposed_names_are_one(tmp_path: Path) -> None:
    composed = unicodedata.normalize("NFC", "bäume é.png")
    yolo(tmp_path, unicodedata.normalize("NFD", composed))
    (label,) = (tmp_path / "labels").iterdir()
    label.rename(label.with_name(Path(composed).with_suffix(".txt").name))
    assert len(train(tmp_path).labelled()) == 1
    content = {
        "images": [{"id": 1, "file_name": composed, "width": 80, "height": 40}],
        "annotations": [],
        "categories": [{"id": 1, "name": "a"}],
    }
    data = check_split(describe_coco(content, "labels.json", [tmp_path / "images"]))
    assert data.path(0).is_file()
    assert codes(data) == ["moved-images"]


def test_hidden_files_are_no_data(tmp_path: Path) -> None:
    yolo(tmp_path)
    for name in ("images/._x.png", "images/.ipynb_checkpoints/x.png", "images/__MACOSX/x.png", "labels/._x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\0\5\26\7")
    assert len(train(tmp_path)) == 2


def test_class_names_stay_as_they_are_written(tmp_path: Path) -> None:
    yolo(tmp_path, yaml="train: images\nval: images\nnames: [no, 012]\n")
    assert train(tmp_path).class_names == ("no", "012")


def test_key_points_behind_a_box_are_left_out(tmp_path: Path) -> None:
    yolo(tmp_path, yaml="train: images\nval: images\nkpt_shape: [2, 3]\nnames: [a, b]\n")
    (tmp_path / "labels" / "x.txt").write_text("0 0.5 0.5 0.5 0.5 0.9 0.9 2 0.9 0.9 2\n")
    np.testing.assert_allclose(train(tmp_path).objects(0)[0], [[20, 10, 60, 30]])


def test_a_yaml_that_explodes_is_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    (tmp_path / "data.yaml").write_text("train: .\n" + "\n".join(lines) + "\nnames: *a29\n")
    with pytest.raises(DataError, match="more than 100 aliases"):
        train(tmp_path)
    (tmp_path / "deep.yaml").write_text("[" * 5000)
    with pytest.raises(DataError, match=r"deep\.yaml.*nested more than 50 deep"):
        read_yaml(tmp_path / "deep.yaml", "YAML")


def test_files_larger_than_their_kind_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    with path.open("wb") as handle:
        handle.truncate(1 << 40)
    with pytest.raises(DataError, match=r"at most 67\.1 MB"):
        read_text(path, "labels")


@pytest.mark.parametrize(("flag", "crowd"), [("0", False), ("false", False), ("", False), (0, False), ("1", True)])
def test_flags_as_text(tmp_path: Path, flag: object, crowd: bool) -> None:
    row = {"image_id": "1", "category_id": "1", "bbox": ["1", "2", "30", "20"], "iscrowd": flag}
    data = index(tmp_path, coco(annotations=[row]))
    assert data.crowd.tolist() == [crowd]


def test_equal_class_names_are_one_class(tmp_path: Path) -> None:
    rows = [{"image_id": 1, "category_id": k, "bbox": [1, 2, 30, 20 + k]} for k in (1, 2)]
    data = index(tmp_path, coco(annotations=rows, categories=[{"id": 1, "name": "a"}, {"id": 2, "name": " a "}]))
    assert data.class_names == ("a",)
    assert data.objects(0)[1].tolist() == [0, 0]
    assert codes(data) == ["class-names", "equal-class-names"]


def test_rows_that_repeat_count_once_but_crowd_regions_stay(tmp_path: Path) -> None:
    row = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 20]}
    data = index(tmp_path, coco(annotations=[row, row, {**row, "iscrowd": 1}, {**row, "category_id": 2}]))
    assert data.labels.tolist() == [0, 0, 1]
    assert data.crowd.tolist() == [False, True, False]
    (finding,) = data.findings
    assert (finding.code, finding.count) == ("repeated-boxes", 1)


def test_an_image_under_two_ids_is_told(tmp_path: Path) -> None:
    rows = [{"id": i, "file_name": "x.png", "width": 80, "height": 40} for i in (1, 2)]
    assert codes(index(tmp_path, coco(images=rows))) == ["images-named-twice"]


def test_the_yaml_file_itself_names_the_data(tmp_path: Path) -> None:
    yolo(tmp_path)
    (tmp_path / "data.yaml").rename(tmp_path / "mine.yml")
    folder, _ = default_data_dir(str(tmp_path / "mine.yml"))
    assert len(load_split(resolve_dataset(folder).require("val"))) == 2
    (tmp_path / "other.yaml").write_text("train: nowhere\nnames: [a]\n")
    with pytest.raises(DataError, match="no train labels found"):
        resolve_dataset(tmp_path)
    with pytest.raises(DataError, match=r"other\.yaml': train names 'nowhere'"):
        resolve_dataset(tmp_path / "other.yaml")


def test_too_many_classes_are_refused(tmp_path: Path) -> None:
    many = [{"id": i, "name": str(i)} for i in range(1, MAX_CLASSES + 2)]
    with pytest.raises(DataError, match="expected at most"):
        index(tmp_path, coco(categories=many))


@pytest.mark.parametrize(
    "prefix", ["images\\", "..\\..\\media\\4\\", "/data/upload/7/", "C:\\Users\\me\\", "s3://bucket/a/", "x%2Fy/"]
)
def test_foreign_prefixes(tmp_path: Path, prefix: str) -> None:
    data = index(tmp_path, coco(images=[{"id": 1, "file_name": f"{prefix}x.png", "width": 80, "height": 40}]))
    assert data.path(0) == tmp_path / "x.png"


def test_images_of_one_base_name_are_told_apart_or_left(tmp_path: Path) -> None:
    for name in ("a/x.png", "b/x.png"):
        image(tmp_path / name)
    rows = [
        {"id": i, "file_name": name, "width": 80, "height": 40} for i, name in enumerate(("q\\b\\x.png", "c/x.png"))
    ]
    data = check_split(describe_coco(coco(images=rows, annotations=[]), "labels.json", [tmp_path]))
    assert data.path(0) == tmp_path / "b" / "x.png"
    assert not data.path(1).exists()
    assert sorted(codes(data)) == ["missing-images", "moved-images"]


def test_nothing_is_taken_from_the_other_split(tmp_path: Path) -> None:
    image(tmp_path / "train2017" / "x.png")
    (tmp_path / "annotations").mkdir()
    for split in ("train", "val"):
        (tmp_path / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(coco()))
    paths = resolve_dataset(tmp_path)
    assert len(load_split(paths.require("train"))) == 1
    with pytest.raises(DataError, match="none of the images"):
        load_split(paths.require("val"))


def test_names_cannot_steer_a_terminal(tmp_path: Path) -> None:
    evil = "a\x1b[2J\nerror: x"
    assert printable(evil, newlines=False) == r"a\x1b[2J\nerror: x"
    assert "\x1b" not in str(YoloxError(f"cannot read '{evil}'"))
    data = index(tmp_path, coco(categories=[{"id": 1, "name": evil}, {"id": 2, "name": "b"}]))
    assert data.class_names == (r"a\x1b[2J\nerror: x", "b")
    report = report_dataset(data, data)
    assert "\x1b" not in report.summary() + "".join(map(str, report.findings))


def test_names_that_are_not_utf8_survive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLOX_CACHE", str(tmp_path / "cache"))
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    root = tmp_path / b"d\xe9".decode("utf-8", "surrogateescape")
    yolo(root, name)
    data = train(root)
    assert data.path(0).is_file()
    cache = open_cache("disk", data, Size(32, 32), reduced_decode=False)
    for _ in range(2):
        kept = ImageSource(data, Size(32, 32), cache=cache).image(0)
        assert kept is not None
        assert kept.shape == (16, 32, 3)
    assert printable(data.file_name(0)).isprintable()


def test_a_nul_in_a_listed_name_is_a_missing_image(tmp_path: Path) -> None:
    yolo(tmp_path, yaml="train: list.txt\nval: list.txt\nnames: [a, b]\n")
    (tmp_path / "list.txt").write_bytes(b"images/x.png\nim\0ages/y.png\nim\0ages/z.png\n")
    data = train(tmp_path)
    assert "missing-images" in codes(data)
    assert [data.path(i).name for i in range(3)] == ["x.png", "y.png", "z.png"]
    assert [data.path(i).exists() for i in range(3)] == [True, True, False]
    assert "missing-images" in [finding.code for finding in report_dataset(data, data).findings]
    assert all(finding.code != "unreadable-images" for finding in inspect_images({"train": data}, lambda *_: None))


_SNIPPETS = (b"0", b"-", b"99999999999999999999", b'"', b"[", b"{", b"\n", b"nan", b"&", b":")


def _damage(data: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(data)
    for _ in range(rng.randrange(1, 3)):
        place = rng.randrange(len(damaged))
        kind = rng.randrange(3)
        if kind == 0:
            damaged[place] = rng.randrange(256)
        elif kind == 1:
            del damaged[place : place + rng.randrange(1, 9)]
        else:
            damaged[place:place] = rng.choice(_SNIPPETS)
        if not damaged:
            return b""
    return bytes(damaged)


def _coco_file(root: Path) -> None:
    image(root / "x.png")
    (root / "train.json").write_text(json.dumps(coco()))


WRITERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "coco": (_coco_file, "train.json"),
    "yolo": (yolo, "labels/x.txt"),
    "yaml": (yolo, "data.yaml"),
    "voc": (lambda root: voc(root, "a", "a"), "Annotations/a.xml"),
    "list": (lambda root: voc(root, "a", "a"), "ImageSets/Main/trainval.txt"),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_damaged_labels_raise_nothing_but_our_errors(tmp_path: Path, kind: str) -> None:
    make, name = WRITERS[kind]
    make(tmp_path)
    whole, rng, path = (tmp_path / name).read_bytes(), random.Random(3), tmp_path / name
    messages = []
    for _ in range(150):
        path.write_bytes(_damage(whole, rng))
        try:
            report_dataset(train(tmp_path), None).summary()
        except YoloxError as error:
            messages.append(str(error))
    assert 0 < len(messages) < 150
    assert "\x1b" not in "".join(messages)
