"""The text files of YOLO labels: where the one of an image lies, and what its lines say."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from yolox.errors import DataError
from yolox.structures import Size
from yolox.text_files import read_lines

NAMES_FILES = ("classes.txt", "obj.names", "classes.names", "_darknet.labels", "predefined_classes.txt", "labels.txt")
"""Files that list the class names, one a line."""
_NOT_LABELS = frozenset((*NAMES_FILES, "train.txt", "val.txt", "valid.txt", "test.txt", "readme.txt", "notes.txt"))


class LabelFiles:
    """Finds the label file of each image; every folder is listed once.

    Looked at, in this order: ``labels`` or ``label`` in the place of the last ``images`` of the path; ``labels`` beside
    or above the image's folder; beside the image. Upper case endings and other Unicode forms count as equal.
    """

    def __init__(self) -> None:
        self._listings: dict[Path, dict[str, Path]] = {}
        self._folders: dict[Path, tuple[Path, ...]] = {}
        self._used: set[Path] = set()

    def find(self, image: Path) -> Path | None:
        """Return the label file of an image, or ``None``."""
        stem = unicodedata.normalize("NFC", image.stem)
        for folder in self._candidates(image.parent):
            path = self._listing(folder).get(stem)
            if path is not None:
                self._used.add(path)
                return path
        return None

    def looked_at(self) -> tuple[Path, ...]:
        """Return the existing folders that were looked at."""
        return tuple(folder for folder, files in self._listings.items() if files or folder.is_dir())

    def elsewhere(self) -> list[Path]:
        """Return the folders of which files were used that are not called ``labels`` or below one so called."""
        folders = sorted({path.parent for path in self._used})
        return [folder for folder in folders if "labels" not in (part.casefold() for part in folder.parts)]

    def without_image(self) -> list[Path]:
        """Return the label files, in folders of which one was used, that no image asked for."""
        folders = {path.parent for path in self._used}
        return [path for folder in folders for path in self._listings[folder].values() if path not in self._used]

    def _candidates(self, folder: Path) -> tuple[Path, ...]:
        if folder not in self._folders:
            found: list[Path] = []
            places = [i for i, part in enumerate(folder.parts) if part.casefold() in ("images", "jpegimages")]
            for name in ("labels", "label", "Labels"):
                if places:
                    head, tail = folder.parts[: places[-1]], folder.parts[places[-1] + 1 :]
                    replaced = Path(*head, name, *tail)
                    found += [replaced, *([replaced.parent] if tail else [])]
                found += [folder.parent / name / folder.name, folder / name, folder.parent / name]
            self._folders[folder] = tuple(dict.fromkeys([*found, folder]))
        return self._folders[folder]

    def _listing(self, folder: Path) -> dict[str, Path]:
        if folder not in self._listings:
            try:
                with os.scandir(folder) as entries:
                    names = sorted(entry.name for entry in entries if entry.name.lower().endswith(".txt"))
            except (OSError, ValueError):  # ValueError: a NUL in the name
                names = []
            self._listings[folder] = {
                unicodedata.normalize("NFC", name[:-4]): folder / name
                for name in names
                if not name.startswith(".") and name.lower() not in _NOT_LABELS
            }
        return self._listings[folder]


@dataclass(frozen=True)
class LabelLine:
    """One object: class index, and centre box or polygon relative to the image.

    Args:
        label: Class index.
        values: ``x y width height``, or the corners of a polygon.
    """

    label: int
    values: tuple[float, ...]

    @property
    def beyond(self) -> bool:
        """Whether the values cannot be shares of an image, even of an object that reaches beyond it."""
        return max(self.values) > 2.0


def read_label_file(path: Path, num_classes: int, num_keypoint_values: int = 0) -> list[LabelLine]:
    """Return the objects of a label file.

    Args:
        path: The file.
        num_classes: Class indices must be below.
        num_keypoint_values: Numbers of a line behind the box, left out (labels for pose estimation).

    Raises:
        DataError: When it cannot be read, or for a line that is neither box nor polygon.
    """
    objects = []
    for number, line in read_lines(path, "lines of 'class x y width height'"):
        try:
            label, *values = (float(word) for word in line.split())
            whole = label.is_integer() and 0 <= label < num_classes and bool(np.isfinite(values).all())
        except (ValueError, OverflowError):
            whole, values = False, []
        if num_keypoint_values and len(values) == 4 + num_keypoint_values:
            values = values[:4]
        if not whole or not (len(values) == 4 or (len(values) >= 6 and len(values) % 2 == 0)):
            raise DataError(
                f"'{path}' line {number} is '{line[:80]}'; expected 'class x y width height' with a class below "
                f"{num_classes} and values relative to the image. Correct or remove it."
            )
        objects.append(LabelLine(int(label), tuple(values)))
    return objects


def pixel_box(values: Sequence[float], size: Size) -> list[float]:
    """Return a box ``[left, top, width, height]`` in pixels from a centre box or the corners of a polygon."""
    if len(values) == 4:
        x, y, width, height = values
        left, top = x - width / 2, y - height / 2
    else:
        left, top = min(values[0::2]), min(values[1::2])
        width, height = max(values[0::2]) - left, max(values[1::2]) - top
    return [left * size.width, top * size.height, width * size.width, height * size.height]
