"""Data sets in Ultralytics' form: ``data.yaml`` and one text file of relative boxes per image."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from yolox.data.coco import Categories, CocoDataset, dataset_from_coco
from yolox.data.image_files import read_file_size
from yolox.errors import DataError
from yolox.structures import Size

__all__ = ["load_yolo", "split_entry"]

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})


def split_entry(config: Path, split: Literal["train", "val"]) -> list[Path]:
    """Return the folders or lists of images that ``data.yaml`` names for a split; empty if it names none.

    Raises:
        DataError: When the file is malformed or names something that does not exist.
    """
    content = _read_config(config)
    entry = content.get(split) or (content.get("valid") if split == "val" else None)
    if not entry:
        return []
    base = Path(str(content.get("path") or ""))
    roots = [base] if base.is_absolute() else [config.parent / base, config.parent]
    found = []
    for item in entry if isinstance(entry, list) else [entry]:
        # Roboflow writes ../train/images for a folder beside the file
        names = [str(item), str(item).removeprefix("../")]
        candidates = [root / name for root in roots for name in names]
        place = next((path for path in candidates if path.exists()), None)
        if place is None:
            raise DataError(f"'{config}': {split} names '{item}', which does not exist (looked at '{candidates[0]}').")
        found.append(place)
    return found


def load_yolo(config: Path, split: Literal["train", "val"], categories: Categories | None = None) -> CocoDataset:
    """Return the index of a split described by ``data.yaml``; image sizes come from the files' headers.

    Raises:
        DataError: When the file, a label or an image is malformed.
    """
    names = _class_names(config)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for path in _image_paths(split_entry(config, split)):
        # an unreadable image keeps a place, so that training can name and skip it
        size = read_file_size(path) or Size(1, 1)
        image_id = len(images) + 1
        images.append({"id": image_id, "file_name": str(path), "height": size.height, "width": size.width})
        for label, box in _read_labels(_label_path(path), size, len(names)):
            annotations.append({"image_id": image_id, "category_id": label, "bbox": box})
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
    }
    return dataset_from_coco(content, f"{config} ({split})", [config.parent], categories)


def _read_config(config: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read '{config}': {error}. Expected YAML with train, val and names.") from error
    if not isinstance(content, dict):
        raise DataError(f"'{config}' holds {type(content).__name__}; expected YAML with train, val and names.")
    return content


def _class_names(config: Path) -> list[str]:
    content = _read_config(config)
    names = content.get("names")
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise DataError(f"'{config}': names has keys {sorted(names)[:5]}; expected 0, 1, 2 and so on.")
        return [str(names[i]) for i in range(len(names))]
    if isinstance(names, list) and names:
        return [str(name) for name in names]
    if isinstance(content.get("nc"), int) and content["nc"] > 0:
        return [f"class {i}" for i in range(content["nc"])]
    raise DataError(f"'{config}' has no 'names'; expected the list of class names.")


def _image_paths(places: list[Path]) -> list[Path]:
    paths: list[Path] = []
    for place in places:
        if place.is_dir():
            paths += sorted(path for path in place.rglob("*") if path.suffix.lower() in _SUFFIXES)
        else:
            lines = [Path(line.strip()) for line in place.read_text(encoding="utf-8").splitlines() if line.strip()]
            paths += [line if line.is_absolute() else place.parent / line for line in lines]
    return [path.absolute() for path in paths]


def _label_path(image: Path) -> Path:
    """Return the text file of an image: the last ``images`` of its path becomes ``labels``."""
    parts = list(image.parts)
    if "images" in parts:
        place = len(parts) - 1 - parts[::-1].index("images")
        parts[place] = "labels"
    return Path(*parts).with_suffix(".txt")


def _read_labels(path: Path, size: Size, num_classes: int) -> list[tuple[int, list[float]]]:
    """Return class and box (xywh, pixels) of each line: class and centre box, or class and polygon."""
    if not path.is_file():
        return []
    objects = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            label, *values = (float(word) for word in line.split())
            whole = label.is_integer() and 0 <= label < num_classes and bool(np.isfinite(values).all())
        except ValueError:
            whole, values = False, []
        if not whole or not (len(values) == 4 or (len(values) >= 6 and len(values) % 2 == 0)):
            raise DataError(
                f"'{path}' line {number} is '{line[:80]}'; expected 'class x y width height' with a class below "
                f"{num_classes} and values relative to the image. Correct or remove it."
            )
        objects.append((int(label), _pixel_box(values, size)))
    return objects


def _pixel_box(values: list[float], size: Size) -> list[float]:
    if len(values) == 4:
        x, y, width, height = values
        left, top = x - width / 2, y - height / 2
    else:
        left, top = min(values[0::2]), min(values[1::2])
        width, height = max(values[0::2]) - left, max(values[1::2]) - top
    return [left * size.width, top * size.height, width * size.width, height * size.height]
