"""Decides where each feature and matrix of a program lies in the memory of one image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from yolox.kernels.int8.bindings import CFeature, CMatrix, Place
from yolox.kernels.int8.int8_ir import Feature, Matrix, Program
from yolox.kernels.int8.stages import blocks_of, owner_of, root, stages_of

_LINE = 64
_VECTOR = 16

Block: TypeAlias = Feature | Matrix


@dataclass
class _Life:
    """Stages during which a block is in use, the step that first writes it, and how many pixels of border it needs."""

    block: Block
    step: int
    first: int
    last: int
    border: int = 0
    at: int = 0


class Memory:
    """A plan: blocks that are never in use at the same time share their place.

    Args:
        program: Whose features and matrices are placed.

    Attributes:
        size: Bytes of one image, with what vectors read beyond the end.
        stages: The stage of each step: see ``stages_of``.
    """

    def __init__(self, program: Program) -> None:
        self._lives: dict[int, _Life] = {}
        self._constants: list[NDArray[np.float32]] = []
        self._outputs = {id(matrix): index for index, matrix in enumerate(program.outputs)}
        self.stages = stages_of(program.steps)
        for index, step in enumerate(program.steps):
            for block in blocks_of(step):
                self._use(block, index)
            if step.border:
                life = self._lives[id(root(vars(step)["input"]))]
                life.border = max(life.border, step.border)
        self._stride = max((step.stride for step in program.steps), default=1)
        placed: list[_Life] = []
        for life in sorted(self._lives.values(), key=lambda life: life.first):
            others = [other for other in placed if other.last >= life.first]
            life.at = _lowest(self._bytes(life), [(other.at, other.at + self._bytes(other)) for other in others])
            placed.append(life)
        end = max((life.at + self._bytes(life) for life in placed), default=0)
        self.size = _up(end + self._beyond(), _LINE)

    def _use(self, block: Block, index: int) -> None:
        owner, stage = owner_of(block), self.stages[index]
        if isinstance(owner, Matrix) and (owner.constant is not None or id(owner) in self._outputs):
            return
        self._lives.setdefault(id(owner), _Life(owner, index, stage, stage)).last = stage

    def _bytes(self, life: _Life) -> int:
        block = life.block
        if isinstance(block, Matrix):
            return _up(block.rows * block.columns * 4, _LINE)
        pixels = (block.height + 2 * life.border) * (block.width + 2 * life.border)
        return _up(pixels * _up(block.channels, _VECTOR), _LINE)

    def _beyond(self) -> int:
        """Vectors of up to 64 bytes, and tiles of some more pixels than are left, may begin in the last pixels."""
        widths = (life.block.channels for life in self._lives.values() if isinstance(life.block, Feature))
        return 4 * _LINE + (16 + 4 * self._stride) * _up(max(widths, default=0), _VECTOR)

    def born(self, index: int) -> Iterator[tuple[Feature, int]]:
        """Yield the features that step ``index`` is the first to write, with the width of their border, if any."""
        for life in self._lives.values():
            if life.step == index and life.border and isinstance(life.block, Feature):
                yield life.block, life.border

    def output(self, matrix: Matrix) -> int | None:
        """Return the index of the array that is written for an output, the same for equal ones; constants have none."""
        return None if matrix.constant is not None else self._outputs[id(matrix)]

    def feature(self, feature: Feature) -> CFeature:
        """Return where a feature lies."""
        if feature.whole is not None:
            whole = self.feature(feature.whole)
            at = whole.at + feature.row * whole.row + feature.column * whole.pixel + feature.first
            row, pixel = feature.every * whole.row, feature.every * whole.pixel
            return CFeature(at, row, pixel, *feature.shape, feature.channels)
        life = self._lives[id(feature)]
        pixel = _up(feature.channels, _VECTOR)
        row = (feature.width + 2 * life.border) * pixel
        return CFeature(life.at + life.border * (row + pixel), row, pixel, *feature.shape, pixel)

    def matrix(self, matrix: Matrix) -> CMatrix:
        """Return where a matrix lies; ``at`` of a constant is an address, good for as long as this plan lives."""
        if matrix.constant is not None:
            constant = np.ascontiguousarray(matrix.constant, np.float32)
            self._constants.append(constant)
            return CMatrix(Place.CONSTANT, constant.ctypes.data, matrix.rows, matrix.columns)
        if id(matrix) in self._outputs:
            return CMatrix(Place.OUTPUT, self._outputs[id(matrix)], matrix.rows, matrix.columns)
        return CMatrix(Place.ARENA, self._lives[id(matrix)].at, matrix.rows, matrix.columns)


def _lowest(size: int, taken: list[tuple[int, int]]) -> int:
    """Return the lowest address at which ``size`` bytes are free."""
    at = 0
    for first, last in sorted(taken):
        if at + size <= first:
            break
        at = max(at, last)
    return at


def _up(number: int, unit: int) -> int:
    return -(-number // unit) * unit
