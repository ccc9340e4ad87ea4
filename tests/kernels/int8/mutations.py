"""Saved 8-bit programs with something changed; as a script it runs many of them: ``mutations.py FOLDER FIRST COUNT``.

Whatever is in the files, loading and running them either gives outputs or a `ModelFileError`. The script is also run
with kernels that a sanitizer watches, where an access out of bounds ends it.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from tile_model import variants

from yolox.errors import ModelFileError
from yolox.kernels import library
from yolox.kernels.int8.executable import Executable
from yolox.kernels.int8.storage import load_program

NUMBERS = (-1, 0, 1, 2, 3, 5, 15, 16, 17, 63, 64, 255, 4096, 2**15, 2**16, 2**31 - 1, 2**31, 2**62, -(2**40))
OTHERS: tuple[Any, ...]
OTHERS = (None, True, 0.5, float("nan"), float("inf"), "1", [], [1], {"block": 0}, {"block": -1}, {"array": 0}, {})
DTYPES = (np.float32, np.float64, np.int8, np.uint8, np.int32, np.bool_)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return where each value of a JSON document lies: its container and its key."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in ((value, key), *_places(value[key]))]


def _change_description(described: Any, source: random.Random) -> None:
    container, key = source.choice(_places(described))
    chance = source.random()
    if chance < 0.1:
        del container[key]
    elif chance < 0.2 and isinstance(container, list):
        container.insert(source.randrange(len(container) + 1), source.choice(container))
    elif chance < 0.5 and type(container[key]) is int:
        container[key] += source.choice((-16, -3, -2, -1, 1, 2, 3, 16))
    elif chance < 0.85:
        container[key] = source.choice(NUMBERS)
    else:
        container[key] = source.choice(OTHERS)


def _change_array(array: Any, source: random.Random) -> Any:
    chance = source.random()
    if chance < 0.3:
        array = array.copy()
        array.flat[source.randrange(array.size)] = source.choice((0, 1, 100, 127))
        return array
    if chance < 0.5 and array.dtype == np.float32:
        return np.full_like(array, source.choice((np.nan, np.inf, -np.inf, 0.0, -1.0, 1e-30, 1e30, 3e38)))
    if chance < 0.6:
        with np.errstate(invalid="ignore"):  # some processors report numbers that the other type does not have
            return array.astype(source.choice(DTYPES))
    if chance < 0.8:
        return array[: source.randrange(len(array) + 1)]
    return np.concatenate([array, array[: source.randrange(1, len(array) + 1)]])


def mutate(folder: Path, target: Path, source: random.Random) -> None:
    """Write a changed copy of the program of one folder into another."""
    described = json.loads((folder / "program.json").read_text(encoding="utf-8"))
    with np.load(folder / "arrays.npz") as archive:
        arrays = [archive[name] for name in archive.files]
    for _ in range(source.choice((1, 1, 1, 2, 3))):
        if source.random() < 0.7:
            _change_description(described, source)
        else:
            index = source.randrange(len(arrays))
            if arrays[index].size:
                arrays[index] = _change_array(arrays[index], source)
    (target / "program.json").write_text(json.dumps(described), encoding="utf-8")
    with (target / "arrays.npz").open("wb") as file:
        np.savez(file, *arrays)


def survive(folder: Path, target: Path, first: int, count: int) -> tuple[int, int]:
    """Return how many changed programs ran, and how many were refused."""
    ran = refused = 0
    for seed in range(first, first + count):
        mutate(folder, target, random.Random(seed))
        try:
            with np.errstate(all="ignore"):
                executable = Executable(load_program(target))
                shapes = executable.program.inputs
                if sum(int(np.prod(shape)) for shape in shapes) < 2**20:
                    inputs = tuple(np.full((2, *shape), 200.0, np.float32) for shape in shapes)
                    executable.run(inputs, 1 + seed % 2, 1 + seed // 2 % 2)
            ran += 1
        except ModelFileError:
            refused += 1
    return ran, refused


if __name__ == "__main__":
    original = Path(sys.argv[1])
    changed = original / "changed"
    changed.mkdir(exist_ok=True)
    with patch.object(library, "host_variants", variants):
        sys.stdout.write("{} {}".format(*survive(original, changed, int(sys.argv[2]), int(sys.argv[3]))))
