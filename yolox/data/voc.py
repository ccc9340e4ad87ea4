"""Data sets in Pascal VOC's form: a list of images and one XML file per image."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yolox.data.coco import Categories, CocoDataset, dataset_from_coco
from yolox.data.image_files import read_file_size
from yolox.errors import DataError

__all__ = ["VOC_CLASSES", "load_voc"]

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")


def load_voc(image_list: Path, image_dirs: Sequence[Path], categories: Categories | None = None) -> CocoDataset:
    """Return the index of the images that a list of ``ImageSets/Main`` names.

    Objects marked difficult are kept. The classes are the usual twenty if no other name occurs, else the names that
    occur anywhere in ``Annotations``, sorted; so all splits have the same.

    Raises:
        DataError: When the list or an XML file is missing or malformed.
    """
    folder = image_list.parents[2] / "Annotations"
    stems = [line.split()[0] for line in image_list.read_text(encoding="utf-8").splitlines() if line.strip()]
    names = _class_names(folder)
    index = {name: i for i, name in enumerate(names, start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, stem in enumerate(stems, start=1):
        root = _parse(folder / f"{stem}.xml")
        images.append({"id": image_id, **_image(root, stem, image_dirs)})
        for item in root.iter("object"):
            box = _box(item, folder / f"{stem}.xml")
            annotations.append({"image_id": image_id, "category_id": index[_name(item)], "bbox": box})
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for name, i in index.items()],
    }
    return dataset_from_coco(content, str(image_list), image_dirs, categories)


def _parse(path: Path) -> ET.Element:
    try:
        return ET.parse(path).getroot()
    except (OSError, ET.ParseError) as error:
        raise DataError(f"cannot read '{path}': {error}. Expected a Pascal VOC annotation.") from error


def _name(item: ET.Element) -> str:
    return (item.findtext("name") or "").strip()


def _class_names(folder: Path) -> tuple[str, ...]:
    found = {_name(item) for path in sorted(folder.glob("*.xml")) for item in _parse(path).iter("object")}
    return VOC_CLASSES if found <= set(VOC_CLASSES) else tuple(sorted(found))


def _image(root: ET.Element, stem: str, image_dirs: Sequence[Path]) -> dict[str, Any]:
    """Return file name, height and width; a size that the XML lacks is read from the image."""
    names = [stem + suffix for suffix in _SUFFIXES]
    found = next((path for folder in image_dirs for name in names if (path := folder / name).is_file()), None)
    name = found.name if found else names[0]
    try:
        height, width = (int(float(root.findtext(f"size/{edge}") or 0)) for edge in ("height", "width"))
    except ValueError:
        height = width = 0
    if height <= 0 or width <= 0:
        size = read_file_size(found) if found else None
        height, width = size or (1, 1)
    return {"file_name": name, "height": height, "width": width}


def _box(item: ET.Element, path: Path) -> list[float]:
    """Return xywh; VOC counts pixels from 1."""
    try:
        edges = [float(item.findtext(f"bndbox/{edge}") or "") for edge in ("xmin", "ymin", "xmax", "ymax")]
    except ValueError:
        edges = []
    if not edges or not np.isfinite(edges).all():
        raise DataError(f"'{path}': object '{_name(item)}' has no complete bndbox; expected four finite numbers.")
    left, top, right, bottom = (float(int(edge)) - 1 for edge in edges)
    return [left, top, right - left, bottom - top]
