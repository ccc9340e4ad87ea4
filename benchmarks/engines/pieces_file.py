"""Pieces of work and the file that keeps what they found, so that a run can be stopped at any time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolox.files import write_text


@dataclass(frozen=True)
class Piece:
    """One piece of work.

    Args:
        key: Its name; pieces of one kind have a common beginning.
        work: Does it; gets what the pieces in ``needs`` found and returns JSON values.
        needs: Keys of other pieces; where one of them was not run or has failed, this one is left out.
    """

    key: str
    work: Callable[..., Mapping[str, Any]]
    needs: tuple[str, ...] = ()


class Pieces:
    """What finished pieces found.

    Args:
        path: The JSON file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def run(self, piece: Piece) -> None:
        """Do a piece of work that is not finished, and write down what it found, or why it failed."""
        has_all = all(key in self._found and not self.failure(key) for key in piece.needs)
        if piece.key in self._found or not has_all:
            return
        print(piece.key, flush=True)
        start = time.monotonic()
        try:
            found = dict(piece.work(*(self._found[key] for key in piece.needs)))
        except RuntimeError as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            found = {"failure": lines[0], "output": lines[-20:]}
            print(f"  {lines[0]}", flush=True)
        self._found[piece.key] = {**found, "took_s": round(time.monotonic() - start, 1)}
        write_text(self._path, json.dumps(self._found, indent=1) + "\n")

    def get(self, key: str) -> Mapping[str, Any]:
        """Return what a piece found; nothing where it was not run."""
        return self._found.get(key, {})

    def failure(self, key: str) -> str:
        """Return why a piece has failed, or nothing."""
        return str(self.get(key).get("failure", ""))

    def seconds(self, beginning: str) -> float:
        """Return how long all pieces whose keys begin so took."""
        return float(sum(found["took_s"] for key, found in self._found.items() if key.startswith(beginning)))
