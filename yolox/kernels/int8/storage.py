"""Programs in files: a JSON description and the arrays beside it, without pickle."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import fields
from enum import IntEnum
from pathlib import Path
from typing import Any, TypeAlias
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from yolox.errors import ModelFileError
from yolox.kernels.int8.int8_ir import Activation, Feature, Matrix, Program, Step
from yolox.kernels.int8.ops.concat import Concatenate
from yolox.kernels.int8.ops.conv_step import Conv
from yolox.kernels.int8.ops.elementwise import Add, Multiply
from yolox.kernels.int8.ops.matrices import Arithmetic, Function, Operation, Unary
from yolox.kernels.int8.ops.pixels import Pack
from yolox.kernels.int8.ops.pooling import AveragePool, MaxPool
from yolox.kernels.int8.ops.resize import Resize, Upsample

DESCRIPTION = "program.json"
ARRAYS = "arrays.npz"
VERSION = 2
STEPS = (Pack, Conv, MaxPool, AveragePool, Upsample, Resize, Add, Multiply, Unary, Arithmetic, Concatenate)
CHOICES: dict[str, type[IntEnum]] = {"activation": Activation, "function": Function, "operation": Operation}

_UNREADABLE = (
    *(ValueError, LookupError, TypeError, AttributeError, ArithmeticError, EOFError, RecursionError),
    *(NotImplementedError, RuntimeError, BadZipFile, zlib.error),  # of archives
)

Plain: TypeAlias = Any
"""A JSON value; ``{"array": 3}`` is an array, ``{"block": 5}`` a feature or matrix."""


def save_program(program: Program, folder: Path) -> None:
    """Write a program into an existing folder."""
    writer = _Writer()
    described = {
        "version": VERSION,
        "inputs": program.inputs,
        "steps": [writer.described(step) for step in program.steps],
        "outputs": [writer.plain(matrix) for matrix in program.outputs],
        "output_shapes": program.output_shapes,
        "int8_share": program.int8_share,
        "blocks": writer.blocks,
    }
    (folder / DESCRIPTION).write_text(json.dumps(described), encoding="utf-8")
    with (folder / ARRAYS).open("wb") as file:
        np.savez(file, *writer.arrays)


def load_program(folder: Path) -> Program:
    """Return the program that ``save_program`` wrote.

    Raises:
        ModelFileError: When the files are absent, damaged, or of another version.
    """
    path = folder / DESCRIPTION
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        with (folder / ARRAYS).open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = [archive[f"arr_{index}"] for index in range(len(archive.files))]
        if described["version"] != VERSION:
            raise ModelFileError(
                f"'{path}' has version {described['version']}, expected {VERSION}. Save the model again."
            )
        return _Reader(described, arrays).program()
    except OSError as error:
        raise ModelFileError(f"'{path}' cannot be read: {error.strerror}. Save the model again.") from error
    except _UNREADABLE as error:
        raise ModelFileError(f"'{path}' and {ARRAYS} hold no readable network. Save the model again.") from error


class _Writer:
    """Turns dataclasses into JSON values; arrays and blocks are written once and referred to by number."""

    def __init__(self) -> None:
        self.arrays: list[NDArray[Any]] = []
        self.blocks: list[Plain] = []
        self._numbers: dict[int, int] = {}

    def plain(self, value: object) -> Plain:
        if isinstance(value, np.ndarray):
            self.arrays.append(value)
            return {"array": len(self.arrays) - 1}
        if isinstance(value, Feature | Matrix):
            if id(value) not in self._numbers:
                described = self.described(value)  # its whole first
                self.blocks.append(described)
                self._numbers[id(value)] = len(self.blocks) - 1
            return {"block": self._numbers[id(value)]}
        return int(value) if isinstance(value, IntEnum) else value

    def described(self, value: Step | Feature | Matrix) -> Plain:
        numbers = {field.name: self.plain(getattr(value, field.name)) for field in fields(value)}
        return {"kind": type(value).__name__, **numbers}


class _Reader:
    """The way back."""

    def __init__(self, described: Mapping[str, Any], arrays: list[NDArray[Any]]) -> None:
        self._described = described
        self._arrays = arrays
        self._blocks: list[Any] = []

    def program(self) -> Program:
        """Return the program."""
        for block in self._described["blocks"]:
            self._blocks.append(self._built(block, (Feature, Matrix)))
        return Program(
            tuple((int(c), int(h), int(w)) for c, h, w in self._described["inputs"]),
            tuple(self._built(step, STEPS) for step in self._described["steps"]),
            tuple(self._value(matrix) for matrix in self._described["outputs"]),
            tuple(tuple(int(size) for size in shape) for shape in self._described["output_shapes"]),
            float(self._described["int8_share"]),
        )

    def _built(self, described: Mapping[str, Plain], allowed: tuple[type, ...]) -> Any:
        kinds = {one.__name__: one for one in allowed}
        values = {name: self._value(value) for name, value in described.items() if name != "kind"}
        values |= {name: choice(values[name]) for name, choice in CHOICES.items() if name in values}
        return kinds[described["kind"]](**values)

    def _value(self, value: Plain) -> Any:
        if isinstance(value, Mapping):
            return self._arrays[value["array"]] if "array" in value else self._blocks[value["block"]]
        return tuple(value) if isinstance(value, list) else value
