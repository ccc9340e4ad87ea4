"""Runs a program with the compiled kernels: its steps become addresses, packed weights and factors per channel."""

from __future__ import annotations

import ctypes
import logging
import os
import weakref
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolox.errors import ModelFileError, UsageError
from yolox.kernels.int8.bindings import CBatch, CFeature, CStep, Instructions, Kind
from yolox.kernels.int8.checks import LARGEST_ARENA, check
from yolox.kernels.int8.int8_ir import Feature, Fields, Floats, Matrix, Program
from yolox.kernels.int8.memory import Memory
from yolox.kernels.library import SWITCH, required_kernels

_VECTOR = 16

_log = logging.getLogger(__name__)


def lower(program: Program, memory: Memory, instructions: Instructions) -> tuple[ctypes.Array[CStep], list[Any]]:
    """Return the steps and the objects whose addresses they hold, which must live as long."""
    lowered: list[CStep] = []
    alive: list[Any] = []
    for index, step in enumerate(program.steps):
        for feature, border in memory.born(index):
            lowered.append(_step({**_border(feature, border), "output": feature}, memory, alive))
        joined = index > 0 and memory.stages[index] == memory.stages[index - 1]
        lowered.append(_step(step.fields(memory, instructions) | {"joined": joined}, memory, alive))
    return (CStep * len(lowered))(*lowered), alive


def _step(fields: Fields, memory: Memory, alive: list[Any]) -> CStep:
    values: Fields = {}
    for name, value in fields.items():
        if isinstance(value, Feature):
            values[name] = memory.feature(value)
        elif isinstance(value, Matrix):
            values[name] = memory.matrix(value)
        elif isinstance(value, np.ndarray):
            alive.append(value)
            values[name] = value.ctypes.data
        elif isinstance(value, tuple):
            alive.append(value)
            values[name] = ctypes.addressof(value[0])
        else:
            values[name] = value if isinstance(value, CFeature | float) else int(value)
    return CStep(**values)


def _border(feature: Feature, border: int) -> Fields:
    pattern = np.zeros(-(-feature.channels // _VECTOR) * _VECTOR, np.uint8)
    pattern[: feature.channels] = feature.zero
    return {"kind": Kind.BORDER, "padding": border, "weight": pattern}


def instructions() -> Instructions:
    """Return what this machine's kernels are made of.

    The matrix unit, with which no speed was measured yet, is used only where the environment names its variant: see
    docs/decisions/0033-amx-int8.md.

    Raises:
        YoloxError: Where there is no compiler, or it fails.
    """
    library = required_kernels()
    found = Instructions(library.native_instructions())
    if found is not Instructions.AMX:
        return found
    asked = os.environ.get(SWITCH, "") not in {"", "0"}
    return found if asked and _may_use_tiles(library) else Instructions.AVX512_VNNI


@cache
def _may_use_tiles(library: ctypes.CDLL) -> bool:
    """Ask the system for the matrix unit; say so if it refuses."""
    granted = bool(library.native_may_use_tiles())
    if not granted:
        _log.warning("kernels: the system refuses the matrix unit (AMX; Linux 5.16 or newer); int8 runs without it")
    return granted


@cache
def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """Return the library with the parameters of its functions told."""
    library.native_create.restype = ctypes.c_void_p
    library.native_create.argtypes = (ctypes.c_void_p, *(ctypes.c_long,) * 3, ctypes.c_int64)
    library.native_destroy.restype, library.native_destroy.argtypes = None, (ctypes.c_void_p,)
    library.native_run.restype, library.native_run.argtypes = ctypes.c_long, (ctypes.c_void_p, ctypes.c_void_p)
    return library


def _destroy(library: ctypes.CDLL, network: int, _alive: object) -> None:
    """Free a network of the kernels; what its steps point at lives until then."""
    library.native_destroy(network)


class Executable:
    """A program with its memory planned and its weights packed; may be run by several threads at once.

    Args:
        program: What to run; its arrays are not changed.

    Raises:
        ModelFileError: When the program's steps do not fit together.
        YoloxError: Where there is no compiler, or it fails.
    """

    def __init__(self, program: Program) -> None:
        check(program)
        self.program = program
        self._library = _declared(required_kernels())
        self._memory = Memory(program)
        if self._memory.size > LARGEST_ARENA:
            raise ModelFileError(
                f"the 8-bit program needs {self._memory.size / 2**30:.1f} GiB for one image, 2 GiB are possible"
            )
        self._steps, self._alive = lower(program, self._memory, instructions())
        self._network = self._library.native_create(
            self._steps, len(self._steps), len(program.inputs), len(program.outputs), self._memory.size
        )
        if not self._network:
            raise MemoryError("no memory for the kernels' plan of the network")
        weakref.finalize(self, _destroy, self._library, self._network, (self._steps, self._alive, self._memory))

    def run(self, inputs: tuple[NDArray[Any], ...], streams: int = 1, team: int = 1) -> tuple[Floats, ...]:
        """Run a batch of any size.

        Args:
            inputs: [B, C, H, W] each, float32 or uint8.
            streams: Images worked on side by side.
            team: Threads for each of them.

        Returns:
            An array for each output of the program, of its shape: see ``Program``.

        Raises:
            UsageError: For inputs of other shapes or types.
        """
        return self._run(inputs, streams, team, None)

    def step_seconds(self, inputs: tuple[NDArray[Any], ...], streams: int, team: int) -> list[tuple[str, float]]:
        """Run a batch and return what each step is, with the seconds that the first thread spent in it.

        Borders count as part of the step before which they stand.
        """
        seconds = np.zeros(len(self._steps))
        self._run(inputs, streams, team, seconds)
        timed = zip(self._steps, seconds, strict=True)
        return [(_name(step), float(second)) for step, second in timed if step.kind != Kind.BORDER]

    def _run(
        self, inputs: tuple[NDArray[Any], ...], streams: int, team: int, seconds: NDArray[np.float64] | None
    ) -> tuple[Floats, ...]:
        images = self._checked(inputs)
        arrays = [np.ascontiguousarray(array) for array in inputs]
        outputs = [np.empty((images, matrix.rows, matrix.columns), np.float32) for matrix in self.program.outputs]
        streams = max(1, min(streams, images))
        input_at, output_at = _addresses(arrays), _addresses(outputs)
        input_bytes = np.array([array[0].nbytes if images else 0 for array in arrays], np.int64)
        is_byte = np.array([array.dtype == np.uint8 for array in arrays], np.int64)
        output_floats = np.array([matrix.rows * matrix.columns for matrix in self.program.outputs], np.int64)
        batch = CBatch(
            images=images,
            inputs=len(arrays),
            outputs=len(outputs),
            input=input_at.ctypes.data,
            input_bytes=input_bytes.ctypes.data,
            is_byte=is_byte.ctypes.data,
            output=output_at.ctypes.data,
            output_floats=output_floats.ctypes.data,
            streams=streams,
            team=max(1, team),
            seconds=None if seconds is None else seconds.ctypes.data,
        )
        if self._library.native_run(self._network, ctypes.byref(batch)):
            raise MemoryError(f"no memory for {streams} images at a time, {self._memory.size / 2**20:.0f} MiB each")
        results = (self._result(matrix, outputs, images) for matrix in self.program.outputs)
        return tuple(self.program.shaped(result, index) for index, result in enumerate(results))

    def _result(self, matrix: Matrix, outputs: Sequence[Floats], images: int) -> Floats:
        index = self._memory.output(matrix)
        if index is not None:
            return outputs[index]
        return np.repeat(np.asarray(matrix.constant, np.float32)[None], images, 0)

    def _checked(self, inputs: Sequence[NDArray[Any]]) -> int:
        """Return the number of images."""
        expected = [("B", *shape) for shape in self.program.inputs]
        got = [array.shape for array in inputs]
        same = len(got) == len(expected) and all(
            shape[1:] == wanted[1:] and shape[0] == got[0][0] for shape, wanted in zip(got, expected, strict=True)
        )
        if not same:
            raise UsageError(f"inputs of the shapes {got} do not fit: the network was prepared for {expected}")
        types = [str(array.dtype) for array in inputs]
        if not {*types} <= {"float32", "uint8"}:
            raise UsageError(f"inputs of the types {types} do not fit: give float32 or uint8")
        return int(got[0][0])


def _name(step: CStep) -> str:
    shape = f"{step.output.height}x{step.output.width}x{step.output.channels} from {step.input.channels}"
    return f"{Kind(step.kind).name.lower()} {shape}, window {step.height}x{step.width}, stride {step.stride}"


def _addresses(arrays: Sequence[NDArray[Any]]) -> NDArray[np.uint64]:
    return np.array([array.ctypes.data for array in arrays], np.uint64)
