"""The index of a COCO JSON, or of its content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from yolox.data.coco_dataset import CocoDataset
from yolox.data.formats.checks import check_split
from yolox.data.formats.coco_json import describe_coco, read_coco_json
from yolox.data.formats.description import Categories

__all__ = ["CocoDataset", "dataset_from_coco", "load_coco"]


def load_coco(annotations: Path, image_dirs: Sequence[Path], categories: Categories | None = None) -> CocoDataset:
    """Return the index of a COCO JSON.

    Args:
        annotations: The JSON file.
        image_dirs: Folders to look for the images in; the first that holds one of them is taken.
        categories: Categories of the training split; the file may use no others.

    Raises:
        DataError: For a file that is missing or malformed, or folders without the images.
    """
    return dataset_from_coco(read_coco_json(annotations), str(annotations), image_dirs, categories)


def dataset_from_coco(
    content: Mapping[str, Any], source: str, image_dirs: Sequence[Path], categories: Categories | None = None
) -> CocoDataset:
    """Return the index of a COCO dict; see ``load_coco``."""
    return check_split(describe_coco(content, source, image_dirs), categories)
