"""Pascal VOC: an XML file per image, listed in ``ImageSets/Main`` or all those of a folder (labelImg, Roboflow)."""

from __future__ import annotations

import re
import unicodedata
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from yolox.data.formats.checks import as_arrays
from yolox.data.formats.description import Finding, SplitDescription, findings_about
from yolox.data.image_files import list_images, read_file_size
from yolox.errors import DataError
from yolox.structures import Size
from yolox.text_files import read_bytes, read_lines

_EXPECTED = "a Pascal VOC annotation"
_DECLARATION = re.compile(rb"^\s*<\?xml[^>]*?encoding\s*=\s*[\"']([A-Za-z0-9._-]+)[\"'][^>]*\?>")
_FLAG = re.compile(r"^(.+?)\s+(-1|0|1)$")


def describe_voc(labels: Path, image_dirs: Sequence[Path], without: Path | None = None) -> SplitDescription:
    """Return what the XML files say; objects marked difficult are kept.

    The classes are the names that occur anywhere in the folder of XML files, sorted; so all splits of it have the same.
    VOC counts pixels from 1 and includes the last one: a box from 11 to 20 is 10 wide and begins at 10.

    Args:
        labels: A list of images of ``ImageSets/Main``, or a folder of XML files.
        image_dirs: Folders of the images.
        without: A list of images that belong to the other split and are left out.

    Raises:
        DataError: When a list or an XML file is missing or malformed.
    """
    folder = labels if labels.is_dir() else labels.parents[2] / "Annotations"
    files = _xml_files(folder)
    parsed = {stem: _parse(path) for stem, path in files.items()}
    findings: list[Finding] = []
    stems = _stems(labels, files, without, findings)
    classes = sorted({name for root in parsed.values() for item in root.iter("object") if (name := _name(item))})
    index = {name: i for i, name in enumerate(classes)}
    images = {_key(path.stem): path for folder in reversed(image_dirs) for path in list_images(folder)[0]}
    paths = [images.get(_key(stem), image_dirs[0] / f"{stem}.jpg") for stem in stems]
    rows: list[tuple[int, int, list[float]]] = []
    nameless: list[str] = []
    for place, stem in enumerate(stems):
        for item in parsed[stem].iter("object"):
            if not _name(item):
                nameless.append(stem)
                continue
            rows.append((place, index[_name(item)], _box(item, files[stem])))
    source = str(labels)
    absent = [path.name for path in paths if not path.exists()]
    if absent and len(absent) == len(paths):
        raise DataError(
            f"none of the images of '{source}' was found (for instance '{absent[0]}') in "
            f"{', '.join(repr(str(item)) for item in image_dirs)}. Name their folder with train_images / val_images."
        )
    findings += findings_about(
        absent, "warning", "missing-images", f"{source}: {len(absent)} of {len(paths)} images are missing"
    )
    text = f"{source}: {len(nameless)} objects have no name and were dropped"
    findings += findings_about(nameless, "warning", "nameless-objects", text)
    sizes = [_size(parsed[stem]) or read_file_size(path) or Size(1, 1) for stem, path in zip(stems, paths, strict=True)]
    unsized = [stem for stem in stems if _size(parsed[stem]) is None]
    text = f"{source}: {len(unsized)} XML files have no size; it was read from the images"
    findings += findings_about(unsized, "note", "sizes-read", text)
    return SplitDescription(
        source=source,
        image_dir=image_dirs[0],
        names=[str(path.relative_to(image_dirs[0]) if path.is_relative_to(image_dirs[0]) else path) for path in paths],
        image_ids=np.arange(1, len(stems) + 1, dtype=np.int64),
        sizes=np.array(sizes, np.int64).reshape(-1, 2),
        categories=tuple(enumerate(classes, start=1)) or ((1, "object"),),
        findings=findings,
        **as_arrays(rows),
    )


def _key(stem: str) -> str:
    return unicodedata.normalize("NFC", stem)


def _xml_files(folder: Path) -> dict[str, Path]:
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".xml" and path.name[0] != ".")
    except OSError as error:
        raise DataError(f"cannot read '{folder}': {error.strerror}; expected a folder of VOC XML files.") from error
    if not paths:
        raise DataError(f"'{folder}' holds no XML file; expected Pascal VOC annotations.")
    return {_key(path.stem): path for path in paths}


def listed_stems(path: Path) -> list[str]:
    """Return the image names of a list; names may hold spaces, and a class list's flag is left out."""
    return [_key(line) for _, line in read_lines(path, "a list of images")]


def _stems(labels: Path, files: dict[str, Path], without: Path | None, findings: list[Finding]) -> list[str]:
    """Return the listed images that have an XML file, each once."""
    if labels.is_dir():
        return list(files)
    listed = [_known(line, files) for line in listed_stems(labels)]
    stems = list(dict.fromkeys(listed))
    text = f"{labels}: {len(listed) - len(stems)} images are named twice and were taken once"
    repeated = [stem for stem, times in Counter(listed).items() if times > 1]
    findings += findings_about(repeated, "warning", "images-named-twice", text)
    if without is not None:
        other = {_known(line, files) for line in listed_stems(without)}
        shared = [stem for stem in stems if stem in other]
        text = f"{labels}: {len(shared)} images are in '{without.name}' too and were left out of the training"
        findings += findings_about(shared, "warning", "lists-overlap", text)
        stems = [stem for stem in stems if stem not in other]
    absent = [stem for stem in stems if stem not in files]
    if absent and len(absent) == len(stems):
        raise DataError(
            f"'{labels}': none of the {len(absent)} listed images has an XML file in Annotations (for instance "
            f"'{absent[0]}.xml'); expected one for each. Is it the right list?"
        )
    text = f"{labels}: {len(absent)} of {len(stems)} listed images have no XML file and were left out"
    findings += findings_about(absent, "warning", "images-without-labels", text)
    return [stem for stem in stems if stem in files]


def _known(line: str, files: dict[str, Path]) -> str:
    """Return the stem that a line of a list means: the line itself, without flag, folder or ending where need be."""
    flagged = _FLAG.match(line)
    for text in (line, flagged.group(1) if flagged else line):
        last = text.replace("\\", "/").rpartition("/")[2]
        for stem in (text, last, last.rpartition(".")[0]):
            if stem in files:
                return stem
    return flagged.group(1) if flagged else line


def _parse(path: Path) -> ET.Element:
    data = read_bytes(path, _EXPECTED, limit=16 << 20)
    try:
        declared = _DECLARATION.match(data)
        if declared and declared.group(1).lower() not in (b"utf-8", b"utf-16", b"us-ascii", b"iso-8859-1"):
            # the parser knows few encodings, Python most
            data = data[declared.end() :].decode(declared.group(1).decode("ascii")).encode("utf-8")
        if b"<!ENTITY" in data:
            raise DataError(f"'{path}' declares entities, which can grow without limit; expected {_EXPECTED}.")
        return ET.fromstring(data)
    except (ET.ParseError, LookupError, ValueError) as error:
        raise DataError(f"cannot read '{path}': {error}. Expected {_EXPECTED}.") from error


def _name(item: ET.Element) -> str:
    return (item.findtext("name") or "").strip()


def _size(root: ET.Element) -> Size | None:
    """Return the size that the XML gives, if any."""
    try:
        # one that fits no integer is refused with the other absurd ones
        height, width = (int(min(float(root.findtext(f"size/{edge}") or 0), 2.0**53)) for edge in ("height", "width"))
    except (ValueError, OverflowError):
        return None
    return Size(height, width) if height > 0 and width > 0 else None


def _box(item: ET.Element, path: Path) -> list[float]:
    """Return xywh in pixels from 0; VOC counts from 1 and includes the last pixel."""
    try:
        edges = [float(item.findtext(f"bndbox/{edge}") or "") for edge in ("xmin", "ymin", "xmax", "ymax")]
    except ValueError:
        edges = []
    if not edges or not bool((np.abs(edges) < 1e9).all()):
        raise DataError(f"'{path}': object '{_name(item)}' has no complete bndbox; expected four finite numbers.")
    left, top, right, bottom = edges
    return [left - 1, top - 1, right - left + 1, bottom - top + 1]
