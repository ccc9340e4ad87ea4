"""Where a data set's labels and images lie: found from the folder's layout, or given by name."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from yolox.data.coco import Categories, CocoDataset, load_coco
from yolox.data.sample_dataset import sample_set_dir
from yolox.errors import DataError

__all__ = ["DatasetPaths", "SplitPaths", "default_data_dir", "load_split", "resolve_dataset"]

Split = Literal["train", "val"]
_SPLIT_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train2017", "train", "training"),
    "val": ("val2017", "val", "valid", "validation"),
}
_JSON_NAMES = ("_annotations.coco.json", "annotations.json", "_annotations.json", "labels.json", "coco.json")
_MAIN_FOLDER = "COCO"


@dataclass(frozen=True)
class SplitPaths:
    """Labels of one split and the folders its images may lie in.

    Args:
        kind: Form of the labels.
        split: ``train`` or ``val``.
        labels: A COCO JSON, an Ultralytics ``data.yaml`` or a VOC list of images.
        image_dirs: Candidates, best first.
    """

    kind: Literal["coco", "voc", "yolo"]
    split: Split
    labels: Path
    image_dirs: tuple[Path, ...]


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
            raise _nothing_found(self.root, split)
        return paths


def resolve_dataset(
    data_dir: str | Path,
    train_ann: str | None = None,
    val_ann: str | None = None,
    train_images: str | None = None,
    val_images: str | None = None,
) -> DatasetPaths:
    """Return where the splits of a data set lie.

    Known layouts: ``annotations/`` beside ``train2017/`` and ``val2017/`` (or ``train/`` and ``val/``), a JSON inside
    each image folder, Pascal VOC, Ultralytics ``data.yaml``. Given paths are absolute or relative to ``data_dir``
    (label files also to its ``annotations``) and go before anything found.

    Raises:
        DataError: When the folder or a given path does not exist, or neither split is found.
    """
    root = Path(data_dir).expanduser()
    if not root.is_dir():
        raise DataError(f"data_dir '{root}' is not a folder; expected the folder of a data set. Check the path.")
    train = _resolve_split(root, "train", train_ann, train_images)
    val = _resolve_split(root, "val", val_ann, val_images)
    if train is None and val is None:
        raise _nothing_found(root, "train")
    return DatasetPaths(root, train, val)


def load_split(paths: SplitPaths, categories: Categories | None = None) -> CocoDataset:
    """Return the index of a split, whatever the form of its labels.

    Args:
        paths: Where it lies.
        categories: Categories whose order gives the class indices; by default the split's own.

    Raises:
        DataError: When labels or images are missing or malformed.
    """
    if paths.kind == "voc":
        from yolox.data.voc import load_voc

        return load_voc(paths.labels, paths.image_dirs, categories)
    if paths.kind == "yolo":
        from yolox.data.yolo_txt import load_yolo

        return load_yolo(paths.labels, paths.split, categories)
    return load_coco(paths.labels, paths.image_dirs, categories)


def default_data_dir(data_dir: str | None) -> tuple[Path, str]:
    """Return the data set to use and one line that says which and why.

    The order: the given folder; ``YOLOX_DATADIR`` (the data set, or a folder that holds ``COCO``); ``datasets/COCO``;
    the built-in sample set, drawn on first use.

    Raises:
        DataError: When a folder was named, by option or by environment, and does not exist.
    """
    if data_dir is not None:
        path = Path(data_dir).expanduser()
        if not path.is_dir():
            raise DataError(
                f"data_dir '{data_dir}' is not a folder; expected the folder of a data set. Check the path."
            )
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


def _resolve_split(root: Path, split: Split, ann: str | None, images: str | None) -> SplitPaths | None:
    image_dirs = [_given(root, images, f"{split}_images", Path.is_dir, ())] if images else []
    if ann:
        labels = _given(root, ann, f"{split}_ann", Path.is_file, ("annotations",))
        return SplitPaths("coco", split, labels, tuple(image_dirs or _image_dirs(root, split, labels)))
    for candidate in _json_candidates(root, split):
        if candidate.is_file():
            return SplitPaths("coco", split, candidate, tuple(image_dirs or _image_dirs(root, split, candidate)))
    return _other_layouts(root, split, tuple(image_dirs))


def _other_layouts(root: Path, split: Split, image_dirs: tuple[Path, ...]) -> SplitPaths | None:
    for name in ("data.yaml", "data.yml", "dataset.yaml"):
        if (root / name).is_file():
            from yolox.data.yolo_txt import split_entry

            return SplitPaths("yolo", split, root / name, ()) if split_entry(root / name, split) else None
    for base in (root, *sorted(root.glob("VOC*"), reverse=True)):
        names = ("trainval", "train") if split == "train" else ("test", "val")
        for name in names:
            labels = base / "ImageSets" / "Main" / f"{name}.txt"
            if labels.is_file():
                return SplitPaths("voc", split, labels, image_dirs or (base / "JPEGImages",))
    return None


def _given(root: Path, value: str, option: str, exists: object, subfolders: tuple[str, ...]) -> Path:
    """Return a path the user named; relative ones are looked up in the data set first."""
    path = Path(value).expanduser()
    candidates = [path] if path.is_absolute() else [root / path, *(root / sub / path for sub in subfolders), path]
    for candidate in candidates:
        if exists(candidate):  # type: ignore[operator]
            return candidate
    raise DataError(
        f"{option} '{value}' does not exist; looked at {', '.join(repr(str(item)) for item in candidates)}. "
        "Give a path relative to data_dir, or an absolute one."
    )


def _json_candidates(root: Path, split: Split) -> Iterable[Path]:
    for name in _SPLIT_NAMES[split]:
        for folder in (root / "annotations", root):
            yield from (folder / f"{stem}.json" for stem in (f"instances_{name}", name, f"{name}_annotations"))
        for folder in (root / name, root / "images" / name):
            yield from (folder / json_name for json_name in _JSON_NAMES)
    for name in _SPLIT_NAMES[split]:
        if (root / name).is_dir():
            yield from _only_one(sorted((root / name).glob("*.json")))
    for folder in (root / "annotations", root):
        if folder.is_dir():
            other = "val" if split == "train" else "train"
            named = [path for path in sorted(folder.glob("*.json")) if split in path.stem and other not in path.stem]
            yield from _only_one([path for path in named if not path.stem.startswith(("captions", "person_keypoints"))])


def _only_one(paths: list[Path]) -> list[Path]:
    """Return the candidate only when there is no choice to make."""
    return paths if len(paths) == 1 else []


def _image_dirs(root: Path, split: Split, labels: Path) -> list[Path]:
    inside = [labels.parent, labels.parent / "images"] if labels.parent not in (root, root / "annotations") else []
    named = [
        folder
        for name in _SPLIT_NAMES[split]
        for folder in (root / name, root / "images" / name, root / name / "images")
    ]
    candidates = [*inside, *named, root / "images", root, labels.parent]
    return [folder for folder in dict.fromkeys(candidates) if folder.is_dir()]


def _nothing_found(root: Path, split: Split) -> DataError:
    try:
        content = sorted(path.name + ("/" if path.is_dir() else "") for path in root.iterdir())
    except OSError:
        content = []
    listed = ", ".join(content[:8]) + (", ..." if len(content) > 8 else "") or "nothing"
    folder = "train2017" if split == "train" else "val2017"
    return DataError(
        f"no {split} labels found in '{root}' (it holds {listed}); expected annotations/instances_{folder}.json with "
        f"images in {folder}/, or {split}/ with a COCO JSON inside, a data.yaml, or Pascal VOC. "
        f"Name the file with {split}_ann."
    )
