"""Where the images of a list of names lie: under that name, or with another separator, prefix or Unicode form."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import unquote

import numpy as np

from yolox.data.formats.description import Finding, examples, findings_about
from yolox.data.image_files import IMAGE_SUFFIXES, OTHER_IMAGE_SUFFIXES
from yolox.errors import DataError

_PROBES = 16
_MAX_FOLDERS = 20_000  # a data set's folder that is really a whole disk is not searched to its end
_ALL_SUFFIXES = IMAGE_SUFFIXES | OTHER_IMAGE_SUFFIXES


def base_name(name: str) -> str:
    """Return the last part of a path of any system, in one Unicode form and case, to compare names by."""
    last = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return unicodedata.normalize("NFC", last).casefold()


def locate_images(
    names: Sequence[str], folders: Sequence[Path], source: str, avoid: Iterable[str] = ()
) -> tuple[Path, list[str], list[Finding]]:
    """Return the folder of the images, the names under which they lie there, and what is missing or was renamed.

    An image that is not there under its name is looked for by its base name in all folders; several files of one base
    name are told apart by the end of their paths, and none is taken where that does not decide.

    Args:
        names: As the labels give them.
        folders: Folders to look in, best first.
        source: Where the names came from, for messages.
        avoid: Names of folders that belong to the other split; nothing is taken from there by base name.

    Raises:
        DataError: When no image is found at all.
    """
    folder = _folder_of_probes(names, folders)
    present = _Listing(folder) if folder else None
    missing = [i for i, name in enumerate(names) if present is None or name not in present]
    found = list(names)
    findings: list[Finding] = []
    if missing:
        by_base = _by_base_name(folders, {word.casefold() for word in avoid})
        moved: list[str] = []
        lost: list[str] = []
        for i in missing:
            path = _best(by_base.get(base_name(names[i])) or by_base.get(base_name(unquote(names[i]))), names[i])
            if path is None:
                lost.append(names[i])
                continue
            folder = folder or path.parent
            found[i] = str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path.absolute())
            moved.append(names[i])
        if folder is None:
            listed = ", ".join(repr(str(item)) for item in folders) or "any folder"
            raise DataError(
                f"none of the images of '{source}' was found (for instance {examples(names)[0]!r}) in {listed}. "
                "Name their folder with train_images / val_images."
            )
        findings += _missing(lost, moved, len(names), source)
    assert folder is not None
    return folder, found, findings


def _missing(lost: Sequence[str], moved: Sequence[str], total: int, source: str) -> list[Finding]:
    text = f"{source}: {len(lost)} of {total} images are missing"
    findings = findings_about(lost, "warning", "missing-images", text)
    text = f"{source}: {len(moved)} of {total} images were found by their base name, in another folder or spelling"
    return findings + findings_about(moved, "note", "moved-images", text)


def _folder_of_probes(names: Sequence[str], folders: Sequence[Path]) -> Path | None:
    """Return the first folder that holds one of a few images spread over the data set."""
    probes = [names[i] for i in np.linspace(0, len(names) - 1, min(len(names), _PROBES)).astype(int)]
    return next((folder for folder in folders if any(_is_file(folder / name) for name in probes)), None)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long a name, a NUL in it
        return False


class _Listing:
    """Which files lie below a folder; each sub-folder that is asked for is read once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, frozenset[str]] = {}

    def __contains__(self, name: str) -> bool:
        parent, last = os.path.split(name)
        if parent not in self._files:
            try:
                with os.scandir(self._folder / parent) as entries:
                    self._files[parent] = frozenset(entry.name for entry in entries)
            except (OSError, ValueError):
                self._files[parent] = frozenset()
        return last in self._files[parent]


def _by_base_name(folders: Sequence[Path], avoid: set[str]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = defaultdict(list)
    seen: set[str] = set()
    for root in folders:
        for place, below, files in os.walk(root):
            if place in seen or len(seen) > _MAX_FOLDERS:
                below.clear()
                continue
            seen.add(place)
            below[:] = [name for name in below if not name.startswith(".") and name.casefold() not in avoid]
            for name in files:
                if not name.startswith(".") and os.path.splitext(name)[1].lower() in _ALL_SUFFIXES:
                    found[base_name(name)].append(Path(place, name))
    return found


def _best(paths: list[Path] | None, name: str) -> Path | None:
    """Return the path whose end agrees longest with a name, or ``None`` where two agree alike."""
    if not paths:
        return None
    wanted = [base_name(part) for part in reversed(name.replace("\\", "/").split("/"))]

    def agreement(path: Path) -> int:
        parts = (base_name(part) for part in reversed(path.parts))
        return next((i for i, (a, b) in enumerate(zip(wanted, parts, strict=False)) if a != b), len(wanted))

    ranked = sorted(paths, key=agreement, reverse=True)
    return None if len(ranked) > 1 and agreement(ranked[0]) == agreement(ranked[1]) else ranked[0]
