"""What is known of a data set before a training or evaluation starts: counts, and what looks wrong."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yolox.data.coco_dataset import CocoDataset
from yolox.data.formats.description import Finding, Severity, findings_about
from yolox.data.image_files import is_turned, read_file_size
from yolox.data.image_source import too_many_bad
from yolox.errors import DataError, printable
from yolox.tables import text_table

_LOG = logging.getLogger(__name__)
MAX_DETECTIONS = 100
"""COCO's AP counts so many detections of a class in an image."""
_NUM_SIZES = 1000  # images whose headers are read before a training
_NUM_COMPARED = 5000  # images whose bytes are compared between the splits before a training
_ASPECT_TOLERANCE = 0.03
_NUM_CLASSES_SHOWN = 12


@dataclass(frozen=True)
class DatasetReport:
    """Counts of the splits, and all findings: those of the readers and those of the whole.

    Args:
        splits: The index of each split, by name.
        findings: Worst first.
    """

    splits: dict[str, CocoDataset]
    findings: tuple[Finding, ...]

    def summary(self) -> str:
        """Return a compact table: images, boxes and classes of each split, and the most frequent classes."""
        rows = []
        for name, data in self.splits.items():
            counts = class_counts(data)
            empty = len(data) - len(data.labelled())
            numbers = (len(data), empty, int(counts.sum()), int(data.crowd.sum()), int((counts > 0).sum()))
            rows.append([name, *map(str, numbers)])
        table = text_table(["split", "images", "without boxes", "boxes", "crowd regions", "classes with boxes"], rows)
        columns = [class_counts(data) for data in self.splits.values()]
        names = next(iter(self.splits.values())).class_names
        order = np.argsort(-sum(columns, np.zeros(len(names), np.int64)), kind="stable")
        shown = [
            f"{printable(names[i], newlines=False)} {'/'.join(str(column[i]) for column in columns)}"
            for i in order[:_NUM_CLASSES_SHOWN]
        ]
        more = f", and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
        return f"{table}\n{len(names)} classes; boxes ({'/'.join(self.splits)}): {', '.join(shown)}{more}"

    def check(self) -> None:
        """Log what the readers have not logged yet.

        Raises:
            DataError: When something makes a training useless.
        """
        logged = {id(finding) for data in self.splits.values() for finding in data.findings}
        for finding in self.findings:
            new = id(finding) not in logged or finding.code == "missing-images"
            if finding.severity != "error" and new:
                _LOG.log(logging.INFO if finding.severity == "note" else logging.WARNING, "%s", finding)
        errors = [str(finding) for finding in self.findings if finding.severity == "error"]
        if errors:
            raise DataError(f"{'; '.join(errors)}. 'python -m yolox.tools.doctor' shows all that is wrong.")


def report_dataset(
    train: CocoDataset | None, val: CocoDataset | None, *, max_labels: int = 120, thorough: bool = False
) -> DatasetReport:
    """Return the report of a data set.

    Args:
        train: Index of the training images, if there are any.
        val: Index of the evaluation images, likewise, with the classes of ``train``.
        max_labels: Objects of an image that training uses at most.
        thorough: Look at the files of all images, not at some.
    """
    splits = {name: data for name, data in (("train", train), ("val", val)) if data is not None}
    findings: list[Finding] = []
    for name, data in splits.items():
        findings += data.findings
        findings += _objects(name, data)
        findings += _missing(name, data)
        findings += _sizes(name, data, len(data) if thorough else _NUM_SIZES)
        limit = max_labels if name == "train" else MAX_DETECTIONS
        findings += _crowded(name, data, limit)
    if train is not None and val is not None:
        findings += _classes_without_boxes(train, val)
        findings += _shared_images(train, val, None if thorough else _NUM_COMPARED)
    rank = {"error": 0, "warning": 1, "note": 2}
    return DatasetReport(splits, tuple(sorted(dict.fromkeys(findings), key=lambda finding: rank[finding.severity])))


def class_counts(data: CocoDataset) -> NDArray[np.int64]:
    """Return ``[C]``, the number of boxes of each class, crowd regions left out."""
    return np.bincount(data.labels[~data.crowd], minlength=len(data.categories)).astype(np.int64)


def _objects(split: str, data: CocoDataset) -> list[Finding]:
    if len(data.labelled()):
        return []
    num_crowd = int(data.crowd.sum())
    what = f"all {num_crowd} labels are crowd regions (iscrowd)" if num_crowd else "no image has a usable box"
    if split == "train":
        text = f"train ('{data.source}'): nothing to learn from: {what}; expected boxes"
        return [Finding("error", "no-objects", text, len(data))]
    text = f"{split} ('{data.source}'): AP cannot be measured: {what}"
    return [Finding("warning", "no-objects", text, len(data))]


def _missing(split: str, data: CocoDataset) -> list[Finding]:
    num_missing = sum(finding.count for finding in data.findings if finding.code == "missing-images")
    if not too_many_bad(num_missing, len(data)):
        return []
    text = f"{split} ('{data.source}'): {num_missing} of {len(data)} images are missing, too many to skip"
    return [Finding("error", "too-many-missing", text, num_missing)]


def _sizes(split: str, data: CocoDataset, limit: int) -> list[Finding]:
    """Compare the size that the labels give with that of the file, of images spread over the split."""
    chosen = np.linspace(0, len(data) - 1, min(len(data), limit)).astype(int)
    scaled: list[str] = []
    distorted: list[str] = []
    num_read = 0
    for index in chosen.tolist():
        size, labelled = read_file_size(data.path(index)), data.size(index)
        if size is None:
            continue
        num_read += 1
        # the pixels are left unturned to fit the labels where an orientation tag allows it
        if labelled == size or (labelled == (size.width, size.height) and is_turned(data.path(index))):
            continue
        ratio = (size.height / labelled.height) / (size.width / labelled.width)
        alike = abs(np.log(ratio)) <= _ASPECT_TOLERANCE
        (scaled if alike else distorted).append(f"{data.file_name(index)} {size.width}x{size.height}")
    text = f"{split}: {len(scaled)} of {num_read} images looked at are larger or smaller than their labels say"
    findings = findings_about(scaled, "note", "other-size", f"{text}; boxes are scaled")
    severity: Severity = "error" if len(distorted) > num_read / 2 else "warning"
    text = f"{split}: {len(distorted)} of {num_read} images looked at have another shape than their labels say"
    return findings + findings_about(distorted, severity, "other-shape", f"{text}; the boxes do not fit the pixels")


def _crowded(split: str, data: CocoDataset, limit: int) -> list[Finding]:
    """Tell images with more objects than training or evaluation uses."""
    owners = data.owners()[~data.crowd]
    if split == "train":
        counts = np.bincount(owners, minlength=len(data))
        what, remedy = "boxes", f"the others are not learnt; 'max_labels {counts.max(initial=0)}' takes all"
    else:
        pairs = owners * len(data.categories) + data.labels[~data.crowd]
        values, numbers = np.unique(pairs, return_counts=True)
        counts = np.zeros(len(data), np.int64)
        np.maximum.at(counts, values // len(data.categories), numbers)
        what, remedy = "boxes of one class", "AP counts no more detections of a class"
    over = np.flatnonzero(counts > limit)
    text = f"{split}: {len(over)} images have more than {limit} {what} (the most: {counts.max(initial=0)}); {remedy}"
    return findings_about([data.file_name(i) for i in over.tolist()], "warning", "many-boxes", text)


def _classes_without_boxes(train: CocoDataset, val: CocoDataset) -> list[Finding]:
    learnt, evaluated = class_counts(train) > 0, class_counts(val) > 0
    names = train.class_names
    unlearnt = [names[i] for i in np.flatnonzero(evaluated & ~learnt)] if learnt.any() else []
    text = f"{len(unlearnt)} classes have boxes in val but none in train"
    findings = findings_about(unlearnt, "warning", "classes-not-learnt", text)
    unused = [names[i] for i in np.flatnonzero(~evaluated & ~learnt)]
    text = f"{len(unused)} of {len(names)} classes have no box at all"
    return findings + findings_about(unused, "note", "classes-without-boxes", text)


def _shared_images(train: CocoDataset, val: CocoDataset, limit: int | None) -> list[Finding]:
    """Tell images of the evaluation that are training images too: the same file, or a copy of it."""
    paths = [_real_paths(data) for data in (train, val)]
    shared = [name for path, name in paths[1].items() if path in paths[0]]
    if not shared and (limit is None or len(train) + len(val) <= limit):
        shared = _copies(list(paths[0]), list(paths[1]))
    text = f"{len(shared)} of {len(val)} val images are training images too; AP on them says nothing about new images"
    return findings_about(shared, "warning", "shared-images", text)


def _real_paths(data: CocoDataset) -> dict[str, str]:
    """Return the paths of all images with links in their folders resolved, and their names."""
    folders: dict[Path, str] = {}
    found = {}
    for index in range(len(data)):
        path = data.path(index)
        folder = folders.get(path.parent)
        if folder is None:
            try:
                folder = os.path.realpath(path.parent)
            except (OSError, ValueError):  # ValueError: a NUL in the name
                folder = str(path.parent)
            folders[path.parent] = folder
        found[os.path.join(folder, path.name)] = path.name
    return found


def _copies(train: Sequence[str], val: Sequence[str]) -> list[str]:
    """Return the names of files of ``val`` whose bytes are those of a file of ``train``."""
    by_size = [_by_size(paths) for paths in (train, val)]
    found = []
    for size in by_size[0].keys() & by_size[1].keys() - {0}:
        known = {_digest(path) for path in by_size[0][size]}
        found += [Path(path).name for path in by_size[1][size] if _digest(path) in known]
    return sorted(found)


def _by_size(paths: Sequence[str]) -> dict[int, list[str]]:
    sizes: dict[int, list[str]] = {}
    for path in paths:
        try:
            sizes.setdefault(Path(path).stat().st_size, []).append(path)
        except (OSError, ValueError):
            continue
    return sizes


def _digest(path: str) -> bytes:
    try:
        return hashlib.blake2b(Path(path).read_bytes()).digest()
    except (OSError, ValueError):
        return path.encode("utf-8", "surrogatepass")
