"""Every image file of a data set, decoded and compared: what a training would only meet on its way."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import numpy as np

from yolox.data.coco_dataset import CocoDataset
from yolox.data.formats.description import Finding, Severity, findings_about
from yolox.data.image_files import IMAGE_SUFFIXES, read_image, why_unreadable
from yolox.data.image_source import too_many_bad

_AT_ONCE = 64  # images between two reports of progress
_BLANK = 1.0  # standard deviation of grey levels below which an image shows nothing
_TINY = 2.0  # side of a box in pixels below which a detector has nothing to see


@dataclass(frozen=True)
class _Inspected:
    """What one image file holds: why it is unreadable, whether it is blank, a digest of its pixels."""

    reason: str
    blank: bool = False
    digest: bytes = b""


def inspect_images(splits: Mapping[str, CocoDataset], on_progress: Callable[[int, int], None]) -> list[Finding]:
    """Decode all images and return what is wrong with them.

    Args:
        splits: The index of each split, by name.
        on_progress: Called with the number of images done and in all.
    """
    total, done = sum(map(len, splits.values())), 0
    findings: list[Finding] = []
    digests: dict[str, list[bytes]] = {}
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for name, data in splits.items():
            inspected: list[_Inspected] = []
            for start in range(0, len(data), _AT_ONCE):
                part = range(start, min(start + _AT_ONCE, len(data)))
                inspected += pool.map(_inspect, repeat(data), part)
                on_progress(done + len(inspected), total)
            done += len(inspected)
            findings += _unreadable(name, data, inspected)
            findings += _blank(name, data, inspected)
            findings += _tiny_boxes(name, data)
            digests[name] = [item.digest for item in inspected]
    findings += _equal_pixels(splits, digests)
    return findings + _unlisted(splits)


def _inspect(data: CocoDataset, index: int) -> _Inspected:
    image = read_image(data.path(index), data.size(index))
    if image is None:
        return _Inspected(why_unreadable(data.path(index)))
    digest = hashlib.blake2b(str(image.shape).encode() + image.tobytes(), digest_size=16).digest()
    return _Inspected("", bool(image.std() < _BLANK), digest)


def _unreadable(split: str, data: CocoDataset, inspected: Sequence[_Inspected]) -> list[Finding]:
    bad = [i for i, item in enumerate(inspected) if item.reason and item.reason != "missing"]
    reasons = Counter(inspected[i].reason for i in bad)
    text = f"{split}: {len(bad)} of {len(data)} images are unreadable: " + ", ".join(
        f"{count} {reason}" for reason, count in reasons.most_common(4)
    )
    severity: Severity = "error" if too_many_bad(len(bad), len(data)) else "warning"
    return findings_about([data.file_name(i) for i in bad], severity, "unreadable-images", text)


def _blank(split: str, data: CocoDataset, inspected: Sequence[_Inspected]) -> list[Finding]:
    blank = [data.file_name(i) for i, item in enumerate(inspected) if item.blank]
    return findings_about(blank, "warning", "blank-images", f"{split}: {len(blank)} images show a single colour")


def _tiny_boxes(split: str, data: CocoDataset) -> list[Finding]:
    tiny = (data.boxes_xywh[:, 2:].min(axis=1, initial=np.inf) < _TINY) & ~data.crowd
    text = f"{split}: {int(tiny.sum())} of {len(tiny)} boxes are less than {_TINY:g} pixels wide or high"
    return findings_about([data.file_name(i) for i in data.owners()[tiny]], "note", "tiny-boxes", text)


def _equal_pixels(splits: Mapping[str, CocoDataset], digests: Mapping[str, Sequence[bytes]]) -> list[Finding]:
    """Tell images that are equal to the pixel, within a split and between the two."""
    findings: list[Finding] = []
    known = {name: set(values) - {b""} for name, values in digests.items()}
    for name, data in splits.items():
        first: dict[bytes, int] = {}
        repeated = [i for i, value in enumerate(digests[name]) if value and first.setdefault(value, i) != i]
        text = f"{name}: {len(repeated)} images have the same pixels as another"
        findings += findings_about([data.file_name(i) for i in repeated], "note", "equal-images", text)
    if "train" in known and "val" in known:
        shared = [i for i, value in enumerate(digests["val"]) if value in known["train"]]
        val = splits["val"]
        text = f"{len(shared)} of {len(val)} val images have the pixels of a training image; AP on them proves nothing"
        findings += findings_about([val.file_name(i) for i in shared], "warning", "shared-pixels", text)
    return findings


def _unlisted(splits: Mapping[str, CocoDataset]) -> list[Finding]:
    """Tell images that lie beside those of the data set and are in no split."""
    listed: dict[Path, set[str]] = defaultdict(set)
    for data in splits.values():
        for i in range(len(data)):
            path = data.path(i)
            listed[path.parent].add(path.name)
    beside: list[str] = []
    for folder, names in listed.items():
        try:
            with os.scandir(folder) as entries:
                found = {entry.name for entry in entries if os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES}
        except (OSError, ValueError):  # ValueError: a NUL in the name
            continue
        beside += sorted(name for name in found - names if not name.startswith("."))
    text = f"{len(beside)} images lie beside those of the data set, but no label names them"
    return findings_about(beside, "note", "unlisted-images", text)
