"""Where the labels and images of a split lie, found from the folder's layout."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from yolox.data.formats.voc import listed_stems
from yolox.data.formats.yolo_labels import NAMES_FILES
from yolox.data.formats.yolo_txt import YAML_SUFFIXES, split_entry
from yolox.data.image_files import IMAGE_SUFFIXES
from yolox.errors import DataError
from yolox.text_files import read_text

_LOG = logging.getLogger(__name__)
Split = Literal["train", "val"]
SPLIT_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train2017", "train", "training"),
    "val": ("val2017", "val", "valid", "validation"),
}
"""Names of folders and files that mean a split, in any case."""
_JSON_NAMES = ("_annotations.coco.json", "annotations.json", "_annotations.json", "labels.json", "coco.json")
_WHOLE_JSON_NAMES = (*_JSON_NAMES, "result.json", "instances_default.json", "dataset.json")
_YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml")
_OTHER_TASKS = ("captions", "person_keypoints", "stuff", "panoptic", "image_info")


@dataclass(frozen=True)
class SplitPaths:
    """Labels of one split and the folders its images may lie in.

    Args:
        kind: Form of the labels.
        split: ``train`` or ``val``.
        labels: A COCO JSON; a ``data.yaml`` or a file of class names; a VOC list of images or a folder of XML files.
        image_dirs: Candidates, best first; for YOLO labels all of them are the split's.
        without: A VOC list of images of the other split, which this one leaves out.
        val_fraction: When not 0, the labels hold both splits, and so large a share of the images is for evaluation.
    """

    kind: Literal["coco", "voc", "yolo"]
    split: Split
    labels: Path
    image_dirs: tuple[Path, ...]
    without: Path | None = None
    val_fraction: float = 0.0


def find_split(root: Path, split: Split, given_dirs: tuple[Path, ...] = ()) -> SplitPaths | None:
    """Return where a split lies in a folder, or ``None``.

    Args:
        root: The data set's folder.
        split: Which one.
        given_dirs: Folders of images that the user named.
    """
    for labels in _json_candidates(root, split):
        return SplitPaths("coco", split, labels, given_dirs or tuple(image_dirs_of(root, split, labels)))
    config = _yaml_of(root)
    if config is not None:
        places = split_entry(config, split)
        return SplitPaths("yolo", split, config, given_dirs or tuple(places)) if places else None
    return _find_voc(root, split, given_dirs) or _find_yolo(root, split, given_dirs)


def find_unsplit(root: Path, given_dirs: tuple[Path, ...] = ()) -> SplitPaths | None:
    """Return where the labels of a data set without splits lie, as those of its training split, or ``None``."""
    here = [_child(folder, name) for name in _WHOLE_JSON_NAMES for folder in (root, root / "annotations")]
    alone = [path for folder in (root, root / "annotations") for path in _only_one(_jsons(folder))]
    for labels in (*here, *alone):
        if labels is not None and labels.is_file():
            return SplitPaths("coco", "train", labels, given_dirs or tuple(image_dirs_of(root, "train", labels)))
    for folder in (root / "Annotations", root / "annotations", root / "labels", root):
        if _holds(folder, (".xml",)):
            images = [root / name for name in ("JPEGImages", "images") if (root / name).is_dir()]
            return SplitPaths("voc", "train", folder, given_dirs or (*images, folder))
    names_file = _names_file(root)
    images = [item for item in (root / "images", root) if _holds(item, IMAGE_SUFFIXES)][:1]
    return SplitPaths("yolo", "train", names_file, given_dirs or tuple(images)) if names_file and images else None


def other_names(split: Split) -> tuple[str, ...]:
    """Return the names of folders that belong to the other split."""
    return SPLIT_NAMES["val" if split == "train" else "train"]


def image_dirs_of(root: Path, split: Split, labels: Path) -> list[Path]:
    """Return the folders that may hold the images of a COCO JSON, best first."""
    top = (root, *(path for name in ("annotations", "Annotations") if (path := root / name).is_dir()))
    inside = [labels.parent, labels.parent / "images"] if labels.parent not in top else []
    subset = labels.stem.removeprefix("instances_")
    named = [
        folder
        for name in (subset, *SPLIT_NAMES[split])
        for folder in (
            _child(root, name),
            *(_child(root / above, name) for above in ("images", "JPEGImages")),
            root / name / "images",
        )
    ]
    candidates = [*inside, *named, root / "images", root / "JPEGImages", root, labels.parent]
    return [folder for folder in dict.fromkeys(candidates) if folder is not None and folder.is_dir()]


def _child(folder: Path, name: str) -> Path | None:
    """Return the entry of that name in any case; exactly that name goes first."""
    if (folder / name).exists():
        return folder / name
    try:
        entries = sorted(os.listdir(folder))
    except OSError:
        return None
    return next((folder / entry for entry in entries if entry.casefold() == name.casefold()), None)


def _jsons(folder: Path) -> list[Path]:
    """Return the JSON files of a folder that may hold boxes; hidden ones and those of other tasks are none."""
    if not folder.is_dir():
        return []
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".json")
    return [path for path in paths if not path.name.startswith((".", *_OTHER_TASKS))]


def _json_candidates(root: Path, split: Split) -> Iterator[Path]:
    folders = (_child(root, "annotations"), root)
    for name in SPLIT_NAMES[split]:
        stems = (f"instances_{name}", name, f"{name}_annotations")
        inside = (_child(root, name), _child(root / "images", name))
        files = [_child(folder, f"{stem}.json") for folder in folders if folder for stem in stems]
        files += [_child(folder, json_name) for folder in inside if folder for json_name in _JSON_NAMES]
        yield from (path for path in files if path is not None and path.is_file())
    for name in SPLIT_NAMES[split]:
        folder = _child(root, name)
        yield from _only_one(_jsons(folder)) if folder else ()
    other = "val" if split == "train" else "train"
    for folder in folders:
        found = _jsons(folder) if folder else []
        yield from _only_one([p for p in found if split in p.stem.casefold() and other not in p.stem.casefold()])


def _only_one(paths: list[Path]) -> list[Path]:
    """Return the candidate only when there is no choice to make."""
    return paths if len(paths) == 1 else []


def _yaml_of(root: Path) -> Path | None:
    """Return the YAML file that describes a data set: by its usual names, or the only one that names images."""
    if root.is_file():
        return root
    for name in _YAML_NAMES:
        if (root / name).is_file():
            return root / name
    found = [
        path
        for path in sorted(root.iterdir())
        if path.suffix.lower() in YAML_SUFFIXES and not path.name.startswith(".") and _describes_data(path)
    ]
    return found[0] if len(found) == 1 else None


def _describes_data(path: Path) -> bool:
    try:
        lines = read_text(path, "YAML").splitlines()
    except DataError:
        return False
    keys = {line.partition(":")[0].strip().strip("\"'") for line in lines}
    return "names" in keys and "train" in keys


def _find_voc(root: Path, split: Split, given_dirs: tuple[Path, ...]) -> SplitPaths | None:
    years = sorted(path for path in root.glob("VOC*") if (path / "ImageSets").is_dir())
    if len(years) > 1 and split == "train":
        others = ", ".join(path.name for path in years[:-1])
        _LOG.warning("of several VOC folders in '%s', %s is read; %s is left out", root, years[-1].name, others)
    for base in (root, *reversed(years)):
        lists = {name: path for name in ("train", "trainval", "val", "test") if (path := _voc_list(base, name))}
        val = lists.get("test") or lists.get("val")
        # trainval holds the images of val: where val is evaluated on, train alone trains
        train = lists.get("trainval") if "test" in lists or "train" not in lists else lists.get("train")
        labels = (train or lists.get("train")) if split == "train" else val
        if labels is not None:
            without = val if split == "train" and val != labels else None
            return SplitPaths("voc", split, labels, given_dirs or (base / "JPEGImages",), without)
    for name in SPLIT_NAMES[split]:
        for folder in (_child(root, name), _child(root / "Annotations", name), _child(root / "annotations", name)):
            if folder is not None and _holds(folder, (".xml",)):
                beside = [_child(root / above, name) for above in ("images", "JPEGImages")]
                images = (folder, *(path for path in (*beside, _child(root, name)) if path is not None))
                return SplitPaths("voc", split, folder, given_dirs or tuple(dict.fromkeys(images)))
    return None


def _voc_list(base: Path, name: str) -> Path | None:
    """Return a list of ``ImageSets/Main`` that names images; an empty one counts as absent."""
    path = base / "ImageSets" / "Main" / f"{name}.txt"
    return path if path.is_file() and listed_stems(path) else None


def _find_yolo(root: Path, split: Split, given_dirs: tuple[Path, ...]) -> SplitPaths | None:
    """Return a split of images with text files and a list of class names, but without ``data.yaml``."""
    names_file = _names_file(root)
    if names_file is None:
        return None
    prefixed = [f"obj_{name}_data" for name in SPLIT_NAMES[split]]
    for name in (*SPLIT_NAMES[split], *prefixed):
        listed = _child(root, f"{name}.txt")
        if listed is not None:
            return SplitPaths("yolo", split, names_file, given_dirs or (listed,))
        for folder in (_child(root / "images", name), _child(root, name)):
            if folder is not None and _holds(folder, IMAGE_SUFFIXES, deep=True):
                return SplitPaths("yolo", split, names_file, given_dirs or (folder,))
    return None


def _names_file(root: Path) -> Path | None:
    folders = (root, root / "labels", root / "images", root / "train", root / "data")
    found = (folder / name for name in NAMES_FILES for folder in folders)
    return next((path for path in found if path.is_file()), None)


def _holds(folder: Path, suffixes: Iterable[str], *, deep: bool = False) -> bool:
    """Return whether a folder holds a visible file with one of the endings, with ``deep`` also further down."""
    endings = tuple(suffixes)
    for _, below, files in os.walk(folder):
        if any(name.lower().endswith(endings) and not name.startswith(".") for name in files):
            return True
        below[:] = [name for name in below if deep and not name.startswith(".")]
    return False
