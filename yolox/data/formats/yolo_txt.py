"""YOLO labels, a text file per image: Ultralytics' ``data.yaml``, darknet's lists, labelImg, Label Studio, Roboflow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yolox.data.formats.checks import as_arrays
from yolox.data.formats.description import Finding, Severity, SplitDescription, examples, findings_about
from yolox.data.formats.image_names import locate_images
from yolox.data.formats.yolo_labels import LabelFiles, pixel_box, read_label_file
from yolox.data.image_files import list_images, read_file_size
from yolox.errors import DataError
from yolox.structures import Size
from yolox.text_files import read_lines, read_yaml

YAML_SUFFIXES = (".yaml", ".yml")
_EXPECTED = "YAML with train, val and names"
_FEW_LABELS = 0.5
_MOST_DIGITS = 18  # Python converts no more than 4300
_MOST_NAMELESS = 10**6
_TOO_MANY_BEYOND = 0.1  # share of boxes with values above 2 at which they are taken for pixels


def split_entry(config: Path, split: str) -> list[Path]:
    """Return the folders or lists of images that ``data.yaml`` names for a split; empty if it names none.

    ``path`` may be relative to the file, or (as in ``coco128.yaml``) to a folder ``datasets`` somewhere else; then the
    folder of that name beside the file, or the file's own folder, is meant.

    Raises:
        DataError: When the file is malformed or names something that does not exist.
    """
    content = read_yaml(config, _EXPECTED)
    entry = content.get(split) or (content.get("valid") if split == "val" else None)
    if not entry:
        return []
    if isinstance(entry, dict):
        raise DataError(f"'{config}': {split} is a mapping; expected a folder, a list of images, or several of them.")
    base = Path(str(content.get("path") or "").replace("\\", "/"))
    here = config.parent
    roots = [here / base, here, here / base.name, here / "datasets" / base.name, here.parent / base]
    found = []
    for item in entry if isinstance(entry, list) else [entry]:
        # Roboflow writes ../train/images for a folder beside the file
        name = str(item).replace("\\", "/")
        candidates = [root / text for root in roots for text in (name, name.removeprefix("../"))]
        place = next((path for path in candidates if path.exists()), None)
        if place is None:
            raise DataError(f"'{config}': {split} names '{item}', which does not exist (looked at '{candidates[0]}').")
        found.append(place)
    return found


def describe_yolo(labels: Path, places: Sequence[Path], split: str) -> SplitDescription:
    """Return what the label files of a split's images say; image sizes come from the files' headers.

    Args:
        labels: ``data.yaml``, or a text file with the class names.
        places: Folders or lists of images.
        split: For messages.

    Raises:
        DataError: When a file is malformed, there is no image, or no label file for any image.
    """
    source = f"{labels} ({split})"
    config = read_yaml(labels, _EXPECTED) if labels.suffix.lower() in YAML_SUFFIXES else {}
    names = _class_names(labels, config) if config else [name for _, name in read_lines(labels, "class names")]
    findings: list[Finding] = []
    images = _images(places, labels.parent, source, findings)
    # an unreadable image keeps a place, so that training can name and skip it
    sizes = [read_file_size(path) or Size(1, 1) for path in images]
    rows = _read_objects(images, sizes, (len(names), _num_keypoint_values(config)), source, findings)
    return SplitDescription(
        source=source,
        image_dir=labels.parent,
        names=[str(path) for path in images],
        image_ids=np.arange(1, len(images) + 1, dtype=np.int64),
        sizes=np.array(sizes, np.int64).reshape(-1, 2),
        categories=tuple(enumerate(names)),
        findings=findings,
        **as_arrays(rows),
    )


def _read_objects(
    images: Sequence[Path], sizes: Sequence[Size], kinds: tuple[int, int], source: str, findings: list[Finding]
) -> list[tuple[int, int, list[float]]]:
    """Return position of the image, class index and xywh of every object."""
    files = LabelFiles()
    rows: list[tuple[int, int, list[float]]] = []
    unlabelled: list[Path] = []
    beyond: list[Path] = []
    for place, (image, size) in enumerate(zip(images, sizes, strict=True)):
        path = files.find(image)
        if path is None:
            unlabelled.append(image)
            continue
        objects = read_label_file(path, *kinds)
        beyond += [path] * sum(item.beyond for item in objects)
        rows += [(place, item.label, pixel_box(item.values, size)) for item in objects]
    if images and len(unlabelled) == len(images):
        looked = ", ".join(f"'{folder}'" for folder in files.looked_at())
        raise DataError(
            f"'{source}': none of the {len(images)} images has a label file (looked for '{images[0].stem}.txt' and the "
            f"others in {looked}); expected folders labels/ beside images/, or text files beside the images."
        )
    if beyond and len(beyond) > _TOO_MANY_BEYOND * len(rows):
        raise DataError(
            f"'{source}': {len(beyond)} of {len(rows)} boxes have values above 2 (for instance in '{beyond[0]}'): are "
            "they pixels? Expected centre and size relative to the image, 0 to 1. Divide them by width and height."
        )
    folders = files.elsewhere()
    if folders:
        text = f"{source}: no folder 'labels'; label files were taken from {examples([folders[0]])[0]}"
        findings.append(Finding("note", "labels-elsewhere", text, len(folders)))
    _note_unlabelled(unlabelled, files.without_image(), len(images), source, findings)
    return rows


def _note_unlabelled(
    unlabelled: Sequence[Path], orphans: Sequence[Path], total: int, source: str, findings: list[Finding]
) -> None:
    text = f"{source}: {len(unlabelled)} of {total} images have no label file and are taken as background"
    severity: Severity = "warning" if len(unlabelled) > _FEW_LABELS * total or orphans else "note"
    findings += findings_about([path.name for path in unlabelled], severity, "images-without-labels", text)
    text = f"{source}: {len(orphans)} label files belong to no image"
    findings += findings_about([path.name for path in orphans], "warning", "labels-without-image", text)


def _class_names(path: Path, config: dict[str, Any]) -> list[str]:
    names = config.get("names")
    number = _whole_number(config.get("nc"))
    if isinstance(names, dict):
        keys = sorted(_whole_number(key) for key in names)
        if keys != list(range(len(names))):
            raise DataError(f"'{path}': names has keys {list(names)[:5]}; expected 0, 1, 2 and so on.")
        names = [names[key] for key in sorted(names, key=_whole_number)]
    if isinstance(names, list) and names:
        if not all(isinstance(name, str) for name in names):
            raise DataError(f"'{path}': names holds lists or mappings; expected the names themselves. Correct it.")
        if number >= 0 and number != len(names):
            raise DataError(f"'{path}': nc is {number}, but names has {len(names)}; expected as many. Correct it.")
        return names
    if 0 < number < _MOST_NAMELESS:
        return [f"class {i}" for i in range(number)]
    raise DataError(f"'{path}' has no 'names'; expected the list of class names.")


def _num_keypoint_values(config: dict[str, Any]) -> int:
    """Return how many numbers of a line behind the box are key points (``kpt_shape: [17, 3]``)."""
    shape = config.get("kpt_shape")
    if isinstance(shape, list) and len(shape) == 2 and all(_whole_number(item) >= 0 for item in shape):
        return _whole_number(shape[0]) * _whole_number(shape[1])
    return 0


def _whole_number(value: object) -> int:
    """Return a number as YAML has it, -1 for anything else and for one of too many digits."""
    text = str(value)
    return int(text) if text.isdecimal() and len(text) <= _MOST_DIGITS else -1


def _images(places: Sequence[Path], root: Path, source: str, findings: list[Finding]) -> list[Path]:
    """Return the images of folders and lists, each once."""
    paths: list[Path] = []
    others: list[Path] = []
    for place in places:
        if place.is_dir():
            found, left_out = list_images(place)
            paths, others = paths + found, others + left_out
        else:
            names = [line for _, line in read_lines(place, "a list of images")]
            if not names:
                continue
            folder, names, located = locate_images(names, [place.parent, root], source)
            findings += located
            paths += [folder / name for name in names]
    unique = list(dict.fromkeys(path.absolute() for path in paths))
    kinds = ", ".join(sorted({path.suffix.lower() for path in others}))
    text = f"{source}: {len(others)} files of formats that are not read ({kinds}) were left out"
    findings += findings_about([path.name for path in others], "warning", "formats-left-out", text)
    if len(unique) < len(paths):
        text = f"{source}: {len(paths) - len(unique)} images are named twice and were taken once"
        findings.append(Finding("warning", "images-named-twice", text, len(paths) - len(unique)))
    if not unique:
        looked = ", ".join(f"'{place}'" for place in places)
        more = f" but {len(others)} files of formats that are not read" if others else ""
        raise DataError(f"'{source}' lists no images: {looked} holds none{more}; expected .jpg, .png or the like.")
    return unique
