"""Where a data set's labels and images lie: found from the folder's layout, or given by name."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from yolox.data.coco_dataset import CocoDataset
from yolox.data.formats.checks import check_split
from yolox.data.formats.coco_json import describe_coco, read_coco_json
from yolox.data.formats.description import Categories, SplitDescription
from yolox.data.formats.layouts import Split, SplitPaths, find_split, find_unsplit, image_dirs_of, other_names
from yolox.data.formats.voc import describe_voc
from yolox.data.formats.yolo_txt import YAML_SUFFIXES, describe_yolo, split_entry
from yolox.data.sample_dataset import sample_set_dir
from yolox.errors import DataError, UsageError
from yolox.tables import shortened

_LOG = logging.getLogger(__name__)
_MAIN_FOLDER = "COCO"


@dataclass(frozen=True)
class DatasetPaths:
    """The splits found in a data set; ``require`` gives one or says why it is missing."""

    root: Path
    train: SplitPaths | None
    val: SplitPaths | None

    def require(self, split: Split) -> SplitPaths:
        """Return the paths of a split.

        Raises:
            DataError: When the data set does not have it.
        """
        paths = self.train if split == "train" else self.val
        if paths is None:
            raise _nothing_found(self.root, split, other=self.val if split == "train" else self.train)
        return paths


def resolve_dataset(
    data_dir: str | Path,
    train_ann: str | None = None,
    val_ann: str | None = None,
    train_images: str | None = None,
    val_images: str | None = None,
    *,
    val_fraction: float = 0.0,
) -> DatasetPaths:
    """Return where the splits of a data set lie.

    Known layouts (``docs/data.md`` draws them): COCO JSON in ``annotations/`` or in each image folder, Pascal VOC, YOLO
    text files with a YAML file or a list of class names. Given paths are absolute or relative to ``data_dir`` (label
    files also to its ``annotations``) and go before anything found.

    Args:
        data_dir: The folder, or the YAML file that describes it.
        train_ann: Labels of the training split.
        val_ann: Labels of the evaluation split.
        train_images: Folder of the training images.
        val_images: Folder of the evaluation images.
        val_fraction: Share of the images to evaluate on where the data set has no evaluation split.

    Raises:
        UsageError: For a ``val_fraction`` that is no share.
        DataError: When the folder or a given path does not exist, or neither split is found.
    """
    if not 0.0 <= val_fraction < 1.0:
        raise UsageError(f"val_fraction is {val_fraction}; expected a share of the images from 0 to below 1, like 0.2.")
    root = _existing(data_dir)
    base = root.parent if root.is_file() else root
    try:
        train = _resolve_split(root, base, "train", train_ann, train_images)
        val = _resolve_split(root, base, "val", val_ann, val_images)
        if train is None and val is None and root.is_dir():
            train = find_unsplit(root, _given_dirs(base, "train", train_images))
    except OSError as error:
        raise DataError(f"cannot read '{error.filename or root}': {error.strerror}. Check its permissions.") from error
    if train is None and val is None:
        raise _nothing_found(root, "train")
    if val is not None and val_fraction > 0:
        _LOG.info("val_fraction is not used: '%s' has an evaluation split, '%s'", root, val.labels)
    if val is None and train is not None and val_fraction > 0:
        val = replace(train, split="val", val_fraction=val_fraction)
        train = replace(train, val_fraction=val_fraction)
    return DatasetPaths(root, train, val)


def load_split(paths: SplitPaths, categories: Categories | None = None) -> CocoDataset:
    """Return the index of a split, whatever the form of its labels.

    Args:
        paths: Where it lies.
        categories: Categories whose order gives the class indices; by default the split's own.

    Raises:
        DataError: When labels or images are missing or malformed.
    """
    try:
        dataset = check_split(_describe(paths), categories)
    except (OSError, MemoryError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise DataError(f"cannot read the labels '{paths.labels}': {reason}. Check the file.") from error
    return _part_of(dataset, paths) if paths.val_fraction else dataset


def _describe(paths: SplitPaths) -> SplitDescription:
    if paths.kind == "voc":
        return describe_voc(paths.labels, paths.image_dirs, paths.without)
    if paths.kind == "yolo":
        return describe_yolo(paths.labels, paths.image_dirs, paths.split)
    content, avoid = read_coco_json(paths.labels), () if paths.val_fraction else other_names(paths.split)
    return describe_coco(content, str(paths.labels), paths.image_dirs, avoid)


def _part_of(dataset: CocoDataset, paths: SplitPaths) -> CocoDataset:
    """Return the images of a split where one file holds both: the name of an image alone decides, as on every run."""
    digests = [
        hashlib.blake2b(Path(dataset.file_name(i)).name.encode("utf-8", "surrogatepass")).digest()
        for i in range(len(dataset))
    ]
    order = np.array(sorted(range(len(dataset)), key=digests.__getitem__), np.int64)
    num_val = min(max(1, round(paths.val_fraction * len(dataset))), len(dataset) - 1)
    if num_val < 1:
        raise DataError(f"'{dataset.source}' has {len(dataset)} image; expected at least two to split. Add images.")
    return dataset.subset(np.sort(order[:num_val] if paths.split == "val" else order[num_val:]))


def default_data_dir(data_dir: str | None) -> tuple[Path, str]:
    """Return the data set to use and one line that says which and why.

    The order: the given folder; ``YOLOX_DATADIR`` (the data set, or a folder that holds ``COCO``); ``datasets/COCO``;
    the built-in sample set, drawn on first use.

    Raises:
        DataError: When a folder was named, by option or by environment, and does not exist.
    """
    if data_dir is not None:
        path = _existing(data_dir)
        return path, f"data set: {path} (data_dir)"
    from_environment = os.environ.get("YOLOX_DATADIR")
    if from_environment:
        path = Path(from_environment).expanduser()
        if not path.is_dir():
            raise DataError(
                f"YOLOX_DATADIR is '{from_environment}', which is not a folder; "
                "expected the folder of a data set. Correct or unset it."
            )
        path = path / _MAIN_FOLDER if (path / _MAIN_FOLDER).is_dir() else path
        return path, f"data set: {path} (from YOLOX_DATADIR)"
    path = Path("datasets") / _MAIN_FOLDER
    if path.is_dir():
        return path, f"data set: {path} (the default place; neither data_dir nor YOLOX_DATADIR is set)"
    sample = sample_set_dir()
    return sample, f"data set: built-in sample set in {sample} (no data_dir, no YOLOX_DATADIR, no {path})"


def _existing(data_dir: str | Path) -> Path:
    """Return the folder of a data set, or the YAML file that describes one."""
    path = Path(data_dir).expanduser()
    if path.is_dir() or (path.suffix.lower() in YAML_SUFFIXES and path.is_file()):
        return path
    raise DataError(
        f"data_dir '{data_dir}' is not a folder; expected the folder of a data set, or its data.yaml. Check the path."
    )


def _given_dirs(base: Path, split: Split, images: str | None) -> tuple[Path, ...]:
    return (_given(base, images, f"{split}_images", Path.is_dir, ()),) if images else ()


def _resolve_split(root: Path, base: Path, split: Split, ann: str | None, images: str | None) -> SplitPaths | None:
    given = _given_dirs(base, split, images)
    if not ann:
        return find_split(root, split, given)
    labels = _given(base, ann, f"{split}_ann", Path.is_file, ("annotations", "ImageSets/Main"))
    if labels.suffix.lower() in YAML_SUFFIXES:
        return SplitPaths("yolo", split, labels, given or tuple(split_entry(labels, split)))
    if labels.suffix.lower() == ".txt" and len(labels.parents) > 2:
        return SplitPaths("voc", split, labels, given or (labels.parents[2] / "JPEGImages",))
    return SplitPaths("coco", split, labels, given or tuple(image_dirs_of(base, split, labels)))


def _given(root: Path, value: str, option: str, exists: Callable[[Path], bool], subfolders: tuple[str, ...]) -> Path:
    """Return a path the user named; relative ones are looked up in the data set first."""
    path = Path(value).expanduser()
    candidates = [path] if path.is_absolute() else [root / path, *(root / sub / path for sub in subfolders), path]
    for candidate in candidates:
        if exists(candidate):
            return candidate
    raise DataError(
        f"{option} '{value}' does not exist; looked at {', '.join(repr(str(item)) for item in candidates)}. "
        "Give a path relative to data_dir, or an absolute one."
    )


def _nothing_found(root: Path, split: Split, other: SplitPaths | None = None) -> DataError:
    try:
        content = sorted(path.name + ("/" if path.is_dir() else "") for path in root.iterdir())
    except OSError:
        content = []
    listed = shortened(content, 8) or "nothing"
    folder = "train2017" if split == "train" else "val2017"
    remedy = " Without a val split, '--val_fraction 0.2' keeps a fifth of the images for it." if other else ""
    return DataError(
        f"no {split} labels found in '{root}' (it holds {listed}); expected annotations/instances_{folder}.json with "
        f"images in {folder}/, or {split}/ with a COCO JSON inside, a data.yaml, or Pascal VOC. "
        f"Name the file with {split}_ann.{remedy}"
    )
