"""Clean data sets of every form of labels, and the faults that are planted into them."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

NAMES = ("red", "blue")


Plant = Callable[[Path], None]


def draw(path: Path, number: int) -> None:
    image = np.full((64, 80, 3), 90, np.uint8)
    image[10:34, 8 + number : 32 + number] = ((30, 30, 230), (230, 60, 30))[number % 2]
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image)


def box(number: int) -> list[int]:
    return [8 + number, 10, 24, 24]


def clean_coco(root: Path) -> None:
    (root / "annotations").mkdir(parents=True)
    for split, numbers in (("train2017", range(1, 13)), ("val2017", range(13, 19))):
        images, rows = [], []
        for i in numbers:
            draw(root / split / f"{i:03d}.png", i)
            images.append({"id": i, "file_name": f"{i:03d}.png", "width": 80, "height": 64})
            rows.append({"id": i, "image_id": i, "category_id": 1 + i % 2, "bbox": box(i), "iscrowd": 0})
        categories = [{"id": k, "name": name} for k, name in enumerate(NAMES, start=1)]
        write(root, split, {"images": images, "annotations": rows, "categories": categories})


def clean_yolo(root: Path) -> None:
    for split, numbers in (("train", range(1, 13)), ("val", range(13, 19))):
        (root / "labels" / split).mkdir(parents=True)
        for i in numbers:
            draw(root / "images" / split / f"{i:03d}.png", i)
            text = f"{i % 2} {(20 + i) / 80} {22 / 64} {24 / 80} {24 / 64}\n"
            (root / "labels" / split / f"{i:03d}.txt").write_text(text)
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [red, blue]\n")


def clean_voc(root: Path) -> None:
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for name, numbers in (("trainval", range(1, 13)), ("test", range(13, 19))):
        (root / "ImageSets" / "Main" / f"{name}.txt").write_text("".join(f"{i:03d}\n" for i in numbers))
        for i in numbers:
            draw(root / "JPEGImages" / f"{i:03d}.png", i)
            edges = zip(("xmin", "ymin", "xmax", "ymax"), (9 + i, 11, 32 + i, 34), strict=True)
            tags = "".join(f"<{tag}>{edge}</{tag}>" for tag, edge in edges)
            (root / "Annotations" / f"{i:03d}.xml").write_text(
                "<annotation><size><width>80</width><height>64</height></size>"
                f"<object><name>{NAMES[i % 2]}</name><bndbox>{tags}</bndbox></object></annotation>"
            )


CLEAN: dict[str, Plant] = {"coco": clean_coco, "yolo": clean_yolo, "voc": clean_voc}


def label_file(root: Path, split: str) -> Path:
    return root / "annotations" / f"instances_{split}.json"


def write(root: Path, split: str, content: dict[str, Any]) -> None:
    label_file(root, split).write_text(json.dumps(content))


def edit(change: Callable[[dict[str, Any]], object], *splits: str) -> Plant:
    """Return what changes the JSON of splits, by default that of train."""

    def plant(root: Path) -> None:
        for split in splits or ("train2017",):
            content = json.loads(label_file(root, split).read_text())
            change(content)
            write(root, split, content)

    return plant


def rows(change: Callable[[dict[str, Any]], object], *splits: str, first: int | None = 1) -> Plant:
    """Return what changes the first rows (None: all) of splits."""
    return edit(lambda content: [change(row) for row in content["annotations"][:first]], *splits)


def bomb(root: Path) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 50000, 50000, 8, 2, 0, 0, 0))
    body = header + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")
    (root / "train2017" / "001.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def truncate(root: Path) -> None:
    path = root / "train2017" / "002.png"
    path.write_bytes(path.read_bytes()[:100])


def same_file(root: Path) -> None:
    (root / "val2017" / "013.png").write_bytes((root / "train2017" / "001.png").read_bytes())


def same_pixels(root: Path) -> None:
    image = cv2.imread(str(root / "train2017" / "001.png"))
    assert image is not None
    cv2.imwrite(str(root / "val2017" / "013.png"), image, [cv2.IMWRITE_PNG_COMPRESSION, 0])


def twice_in_train(root: Path) -> None:
    (root / "train2017" / "003.png").write_bytes((root / "train2017" / "001.png").read_bytes())


def resized(width: int, height: int, *names: str) -> Plant:
    def plant(root: Path) -> None:
        for name in names:
            path = root / "train2017" / name
            image = cv2.imread(str(path))
            assert image is not None
            cv2.imwrite(str(path), cv2.resize(image, (width, height)))

    return plant


def many_boxes(content: dict[str, Any]) -> None:
    extra = {"image_id": 1, "category_id": 1}
    content["annotations"] += [{**extra, "bbox": [1 + i % 60, 1 + i // 60, 12, 12]} for i in range(130)]


def write_text(name: str, text: str | bytes) -> Plant:
    def plant(root: Path) -> None:
        (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())

    return plant


def blank(root: Path) -> None:
    cv2.imwrite(str(root / "train2017" / "004.png"), np.zeros((64, 80, 3), np.uint8))


def remove(*names: str) -> Plant:
    def plant(root: Path) -> None:
        for name in names:
            (root / name).unlink()

    return plant


def all_labels(text: str) -> Plant:
    def plant(root: Path) -> None:
        for path in (root / "labels").rglob("*.txt"):
            path.write_text(text)

    return plant


def replace_in(name: str, old: str, new: str) -> Plant:
    def plant(root: Path) -> None:
        text = (root / name).read_text()
        assert old in text
        (root / name).write_text(text.replace(old, new))

    return plant


BOTH = ("train2017", "val2017")


FAULTS: dict[str, tuple[str, str, str, Plant]] = {
    # name: form, severity, code, what plants it
    "truncated image": ("coco", "warning", "unreadable-images", truncate),
    "text called png": ("coco", "warning", "unreadable-images", write_text("train2017/001.png", "no image")),
    "empty file": ("coco", "warning", "unreadable-images", write_text("train2017/001.png", "")),
    "bomb": ("coco", "warning", "unreadable-images", bomb),
    "missing image": ("coco", "warning", "missing-images", remove("train2017/005.png")),
    "half are missing": (
        *("coco", "error", "too-many-missing"),
        remove(*(f"train2017/{i:03d}.png" for i in range(1, 9))),
    ),
    "repeated row": ("coco", "warning", "repeated-boxes", edit(lambda c: c["annotations"].append(c["annotations"][0]))),
    "equal class names": (
        "coco",
        "warning",
        "equal-class-names",
        edit(lambda c: c["categories"][1].update(name="red")),
    ),
    "escape in a class name": (
        *("coco", "warning", "class-names"),
        edit(lambda c: c["categories"][1].update(name="\x1b[31mblue\n"), *BOTH),
    ),
    "box outside": ("coco", "warning", "boxes-outside", rows(lambda row: row.update(bbox=[200, 5, 10, 10]))),
    "box without area": ("coco", "warning", "boxes-outside", rows(lambda row: row.update(bbox=[20, 5, 0, 10]))),
    "boxes of 0 to 1": (
        *("coco", "error", "labels"),
        rows(lambda row: row.update(bbox=[0.1, 0.2, 0.3, 0.4]), first=None),
    ),
    "corners for sizes": (
        *("coco", "error", "boxes-as-corners"),
        rows(lambda row: row.update(bbox=[40, 30, 75, 60]), first=None),
    ),
    "unknown category": ("coco", "error", "labels", rows(lambda row: row.update(category_id=99))),
    "unknown image": ("coco", "error", "labels", rows(lambda row: row.update(image_id=99))),
    "NaN in a box": ("coco", "error", "labels", rows(lambda row: row.update(bbox=[1, float("nan"), 3, 4]))),
    "broken JSON": ("coco", "error", "labels", write_text("annotations/instances_val2017.json", '{"images": [')),
    "all crowd": ("coco", "error", "no-objects", rows(lambda row: row.update(iscrowd=1), first=None)),
    "val without objects": ("coco", "warning", "no-objects", edit(lambda c: c["annotations"].clear(), "val2017")),
    "no val": ("coco", "error", "no-val-split", remove("annotations/instances_val2017.json")),
    "no train": ("coco", "error", "no-train-split", remove("annotations/instances_train2017.json")),
    "same file in both": ("coco", "warning", "shared-images", same_file),
    "same pixels in both": ("coco", "warning", "shared-pixels", same_pixels),
    "image twice": ("coco", "note", "equal-images", twice_in_train),
    "blank image": ("coco", "warning", "blank-images", blank),
    "other shape": ("coco", "warning", "other-shape", resized(64, 80 * 2, "001.png")),
    "width for height": (
        *("coco", "warning", "other-shape"),
        edit(lambda c: c["images"][0].update(width=64, height=80)),
    ),
    "all of other shape": (
        *("coco", "error", "other-shape"),
        resized(100, 64, *(f"{i:03d}.png" for i in range(1, 13))),
    ),
    "other size": ("coco", "note", "other-size", resized(160, 128, "001.png")),
    "130 boxes": ("coco", "warning", "many-boxes", edit(many_boxes)),
    "tiny box": ("coco", "note", "tiny-boxes", rows(lambda row: row.update(bbox=[20, 5, 1, 10]))),
    "class in val only": (
        *("coco", "warning", "classes-not-learnt"),
        rows(lambda row: row.update(category_id=1), first=None),
    ),
    "class of nothing": (
        *("coco", "note", "classes-without-boxes"),
        edit(lambda c: c["categories"].append({"id": 3, "name": "green"}), *BOTH),
    ),
    "grouping category": (
        *("coco", "note", "grouping-category"),
        edit(
            lambda c: (
                [row.update(supercategory="all") for row in c["categories"]],
                c["categories"].append({"id": 0, "name": "all", "supercategory": "none"}),
            ),
            *BOTH,
        ),
    ),
    "names of another system": (
        *("coco", "note", "moved-images"),
        edit(lambda c: [row.update(file_name=f"C:\\data\\{row['file_name']}") for row in c["images"]]),
    ),
    "no sizes": ("coco", "note", "sizes-read", edit(lambda c: [row.pop("width") for row in c["images"]])),
    "images beside": ("coco", "note", "unlisted-images", lambda root: draw(root / "train2017" / "099.png", 40)),
    "no labels at all": (
        *("yolo", "error", "labels"),
        remove(*(f"labels/train/{i:03d}.txt" for i in range(1, 13))),
    ),
    "one without label": ("yolo", "note", "images-without-labels", remove("labels/train/001.txt")),
    "label without image": (
        "yolo",
        "warning",
        "labels-without-image",
        write_text("labels/train/x.txt", "0 .5 .5 .1 .1"),
    ),
    "pixels in YOLO": ("yolo", "error", "labels", all_labels("0 30 30 20 20\n")),
    "bad line": ("yolo", "error", "labels", write_text("labels/val/013.txt", "0 0.5 0.5\n")),
    "class too high": ("yolo", "error", "labels", write_text("labels/train/001.txt", "2 0.5 0.5 0.1 0.1\n")),
    "other encoding": (
        "yolo",
        "error",
        "labels",
        write_text("labels/train/001.txt", "0 0.5 0.5 0.1 0.1 é".encode("latin1")),
    ),
    "formats left out": ("yolo", "warning", "formats-left-out", write_text("images/train/x.gif", "GIF89a")),
    "missing folder": ("yolo", "error", "labels", replace_in("data.yaml", "images/val", "images/none")),
    "names and nc differ": ("yolo", "error", "labels", replace_in("data.yaml", "names", "nc: 3\nnames")),
    "lists overlap": ("voc", "warning", "lists-overlap", replace_in("ImageSets/Main/test.txt", "013\n", "013\n001\n")),
    "no name": ("voc", "warning", "nameless-objects", replace_in("Annotations/001.xml", "<name>blue</name>", "")),
    "XML missing": ("voc", "warning", "images-without-labels", remove("Annotations/002.xml")),
    "no size in XML": ("voc", "note", "sizes-read", replace_in("Annotations/001.xml", "<width>80</width>", "")),
    "no box in XML": ("voc", "error", "labels", replace_in("Annotations/001.xml", "<xmin>", "<min>")),
    "listed twice": (
        "voc",
        "warning",
        "images-named-twice",
        replace_in("ImageSets/Main/test.txt", "013\n", "013\n013\n"),
    ),
    "entities in XML": (
        "voc",
        "error",
        "labels",
        replace_in("Annotations/001.xml", "<annotation>", '<!DOCTYPE a [<!ENTITY b "c">]><annotation>'),
    ),
}
