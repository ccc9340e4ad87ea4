"""What a reader yields, whatever the form of the labels: images, boxes and classes, and what was found on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from yolox.errors import printable

Categories = tuple[tuple[int, str], ...]
"""Pairs (category id, name), sorted by id; the position is the class index."""
Severity = Literal["error", "warning", "note"]
_NUM_EXAMPLES = 3


@dataclass(frozen=True)
class Finding:
    """Something about a data set that a user should know.

    Args:
        severity: ``error`` stops a training, ``warning`` costs accuracy or was repaired, ``note`` is worth knowing.
        code: What kind of thing it is, for programs: ``duplicate-rows``.
        text: A sentence with the count.
        count: How many images, rows or classes it concerns.
        examples: A few of them.
    """

    severity: Severity
    code: str
    text: str
    count: int = 1
    examples: tuple[str, ...] = ()

    def __str__(self) -> str:
        listed = f" (for instance {', '.join(self.examples)})" if self.examples else ""
        return self.text.rstrip(".") + listed

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for a JSON file."""
        return {"severity": self.severity, "code": self.code, "text": self.text, "count": self.count} | (
            {"examples": list(self.examples)} if self.examples else {}
        )


def findings_about(names: Sequence[object], severity: Severity, code: str, text: str) -> list[Finding]:
    """Return the finding that these images, rows or classes make together, with a few of them; none where none is."""
    return [Finding(severity, code, text, len(names), examples(names))] if names else []


def examples(names: Sequence[object]) -> tuple[str, ...]:
    """Return the first few names, each once and safe to print."""
    return tuple(printable(str(name), newlines=False) for name in list(dict.fromkeys(names))[:_NUM_EXAMPLES])


@dataclass
class SplitDescription:
    """Images and labelled objects of one split as a reader found them; ``checks.check_split`` makes the index of it.

    Axes: N images, M objects.

    Args:
        source: Where the labels came from, for messages.
        image_dir: The folder that names start from.
        names: File names of the images, relative to ``image_dir`` or absolute.
        image_ids: ``[N]`` int64.
        sizes: ``[N, 2]`` height and width.
        categories: Pairs (id, name), sorted by id.
        owners: ``[M]`` the position of each object's image.
        labels: ``[M]`` positions in ``categories``.
        boxes_xywh: ``[M, 4]`` float64, pixels.
        areas: ``[M]`` float64.
        crowd: ``[M]`` bool.
        findings: What was repaired, left out or looks wrong.
    """

    source: str
    image_dir: Path
    names: Sequence[str]
    image_ids: NDArray[np.int64]
    sizes: NDArray[Any]
    categories: Categories
    owners: NDArray[np.int64]
    labels: NDArray[np.int64]
    boxes_xywh: NDArray[np.float64]
    areas: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    findings: list[Finding] = field(default_factory=list)
