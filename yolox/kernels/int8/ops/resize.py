"""Features of another size: each pixel several times, or any size by nearest or linear interpolation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from yolox.kernels.int8.bindings import Instructions, Kind
from yolox.kernels.int8.float_ir import Layer
from yolox.kernels.int8.int8_ir import Feature, Fields, Floats, Step
from yolox.kernels.int8.onnx_graph import Graph, Node
from yolox.kernels.int8.quantize import QuantizationParameters, RangeObserver

if TYPE_CHECKING:
    from torch import Tensor

    from yolox.kernels.int8.builder import Builder
    from yolox.kernels.int8.memory import Memory


@dataclass(frozen=True, eq=False)
class _Resized(Layer):
    """A layer whose bytes stand for what those of its input do."""

    def parameters(
        self, known: dict[str, QuantizationParameters], observer: RangeObserver, quantile: float
    ) -> QuantizationParameters:
        """Return the input's parameters."""
        return known[self.inputs[0]]


@dataclass(frozen=True, eq=False)
class Enlarge(_Resized):
    """Each pixel ``factor`` times in each direction."""

    factor: int

    def __call__(self, *values: Tensor) -> Tensor:
        """Return [batch, channels, height * factor, width * factor]."""
        return values[0].repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3)

    def build(self, builder: Builder) -> None:
        """Append the step."""
        builder.steps.append(Upsample(builder.feature(self.inputs[0]), builder.feature(self.output), self.factor))


@dataclass(frozen=True, eq=False)
class Interpolate(_Resized):
    """Each row is a mixture of two of the input, then each column: see ``Resize``."""

    rows: NDArray[np.int32]
    columns: NDArray[np.int32]
    row_shares: Floats
    column_shares: Floats

    def __call__(self, *values: Tensor) -> Tensor:
        """Return [batch, channels, height, width]."""
        import torch

        mixed = values[0]
        for axis, places, shares in ((2, self.rows, self.row_shares), (3, self.columns, self.column_shares)):
            first, second = (mixed.index_select(axis, torch.from_numpy(one.astype(np.int64))) for one in places)
            share = torch.from_numpy(shares).reshape((1, 1, -1, 1) if axis == 2 else (1, 1, 1, -1))
            mixed = first + (second - first) * share
        return mixed

    def build(self, builder: Builder) -> None:
        """Append the step."""
        source, target = (builder.feature(name) for name in (self.inputs[0], self.output))
        numbers = (self.rows, self.columns, self.row_shares, self.column_shares)
        builder.steps.append(Resize(source, target, *numbers))


@dataclass(frozen=True, eq=False)
class Upsample(Step):
    """Each pixel ``factor`` times in each direction; with a factor of 1, a copy."""

    input: Feature
    output: Feature
    factor: int

    def fits(self, inputs: tuple[tuple[int, int, int], ...]) -> bool:
        """See ``Step``."""
        height, width, channels = self.input.shape
        return self.factor > 0 and self.output.shape == (height * self.factor, width * self.factor, channels)

    def fields(self, memory: Memory, instructions: Instructions) -> Fields:
        """See ``Step``."""
        return {"kind": Kind.UPSAMPLE, "input": self.input, "output": self.output, "size": self.factor}


@dataclass(frozen=True, eq=False)
class Resize(Step):
    """Mixtures of two rows and two columns each; both features have the same scales and zeros.

    Args:
        input: The feature read.
        output: What is written.
        rows: int32 [2, height of the output]: the two rows of the input.
        columns: int32 [2, width of the output]: likewise.
        row_shares: float32 [height of the output], 0...1: the share of the second row.
        column_shares: float32 [width of the output]: likewise.
    """

    input: Feature
    output: Feature
    rows: NDArray[np.int32]
    columns: NDArray[np.int32]
    row_shares: Floats
    column_shares: Floats

    def fits(self, inputs: tuple[tuple[int, int, int], ...]) -> bool:
        """See ``Step``."""
        axes = zip(
            (self.rows, self.columns),
            (self.row_shares, self.column_shares),
            self.input.shape[:2],
            self.output.shape[:2],
            strict=True,
        )
        return self.input.channels == self.output.channels and all(
            places.shape == (2, count)
            and shares.shape == (count,)
            and bool(places.min() >= 0 and places.max() < length and shares.min() >= 0.0 and shares.max() <= 1.0)
            for places, shares, length, count in axes
        )

    def fields(self, memory: Memory, instructions: Instructions) -> Fields:
        """See ``Step``."""
        return {
            "kind": Kind.RESIZE,
            "input": self.input,
            "output": self.output,
            "order": np.concatenate([self.rows.ravel(), self.columns.ravel()]).astype(np.int32),
            "multiplier": np.concatenate([self.row_shares, self.column_shares]).astype(np.float32),
        }


def read_resize(graph: Graph, node: Node) -> None:
    """Read a Resize of rows and columns."""
    before, after = (graph.feature_shape(name, node) for name in (node.inputs[0], node.output))
    mode, names = node.text("mode", "nearest"), (graph.feature(node.inputs[0], node),)
    if mode not in ("nearest", "linear") or before[0] != after[0] or node.attributes.get("antialias", 0):
        raise node.refusal("expected nearest or linear interpolation of rows and columns")
    factor = after[1] // before[1]
    if mode == "nearest" and after == (before[0], before[1] * factor, before[2] * factor):
        graph.layers.append(Enlarge(node.name, names, node.output, factor))
        return
    (rows, row_shares), (columns, column_shares) = (
        _mixture(graph, node, mode, before[axis], after[axis], axis) for axis in (1, 2)
    )
    numbers = (rows, columns, row_shares, column_shares)
    graph.layers.append(Interpolate(node.name, names, node.output, *numbers))


def _mixture(
    graph: Graph, node: Node, mode: str, before: int, after: int, axis: int
) -> tuple[NDArray[np.int32], Floats]:
    """Return the two places that each new one is made of, [2, after], and the share of the second, as ONNX has it."""
    scales = graph.optional(node, 2)
    scale = float(scales[1 + axis]) if scales is not None and scales.size == 4 else after / before
    place = np.arange(after, dtype=np.float64)
    match node.text("coordinate_transformation_mode", "half_pixel"):
        case "half_pixel":
            place = (place + 0.5) / scale - 0.5
        case "pytorch_half_pixel":
            place = (place + 0.5) / scale - 0.5 if after > 1 else place * 0
        case "asymmetric":
            place = place / scale
        case "align_corners":
            place = place * (before - 1) / max(after - 1, 1)
        case other:
            raise node.refusal(f"it transforms coordinates as {other}")
    if mode == "nearest":
        rounding = node.text("nearest_mode", "round_prefer_floor")
        if rounding not in ("floor", "ceil", "round_prefer_floor"):
            raise node.refusal(f"it rounds coordinates as {rounding}")
        place = np.floor(place) if rounding == "floor" else np.ceil(place - 0.5 * (rounding != "ceil"))
    first = np.floor(place)
    both = np.clip(np.stack([first, first + 1]), 0, before - 1).astype(np.int32)
    return both, (place - first).astype(np.float32)
