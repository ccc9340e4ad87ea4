"""Artifacts and pickles as strangers may make them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from yolox.inference.artifacts.manifest import Manifest, file_entries, write_manifest
from yolox.inference.backends.base import Settings


class Touch:
    """Unpickling it creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.marker,)


def artifact(folder: Path, backend: str, files: dict[str, bytes], **values: Any) -> Path:
    """Write files under a manifest whose checksums are right, and whose other fields say what is given."""
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    manifest = Manifest("x", backend, "fp32", {}, Settings(), ((1, 3, 64, 64),), ("float32",), 2)
    write_manifest(replace(manifest, files=file_entries(folder), **values), folder)
    return folder
