"""The largest value and the mean of a window, or of all pixels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from yolox.kernels.int8.bindings import Instructions, Kind
from yolox.kernels.int8.float_ir import Layer
from yolox.kernels.int8.int8_ir import LARGEST_SIDE, LARGEST_WINDOW, Feature, Fields, Step, padded
from yolox.kernels.int8.onnx_graph import Graph, Node
from yolox.kernels.int8.ops.convolution import Window, read_window
from yolox.kernels.int8.quantize import QuantizationParameters, RangeObserver

if TYPE_CHECKING:
    from torch import Tensor

    from yolox.kernels.int8.builder import Builder
    from yolox.kernels.int8.memory import Memory


MOST_PIXELS = 2**22
"""Of a window whose bytes are added in 32 bits."""


@dataclass(frozen=True, eq=False)
class Pool(Layer):
    """The largest value of a window.

    Args:
        height: Rows of the window.
        width: Columns of the window.
        window: Stride and padding; the padding is never the largest.
    """

    height: int
    width: int
    window: Window

    def __call__(self, *values: Tensor) -> Tensor:
        """Return [batch, channels, height, width]."""
        import torch.nn.functional as F

        top, left, bottom, right = self.window.padding
        padded_values = F.pad(values[0], (left, right, top, bottom), value=-float("inf"))
        return F.max_pool2d(padded_values, (self.height, self.width), self.window.stride)

    def parameters(
        self, known: dict[str, QuantizationParameters], observer: RangeObserver, quantile: float
    ) -> QuantizationParameters:
        """Return the input's parameters: bytes are copied."""
        return known[self.inputs[0]]

    def build(self, builder: Builder) -> None:
        """Append the step."""
        source, target = (builder.feature(name) for name in (self.inputs[0], self.output))
        top, left = self.window.padding[:2]
        builder.steps.append(MaxPool(source, target, self.height, self.width, self.window.stride, top, left))


@dataclass(frozen=True, eq=False)
class Average(Layer):
    """The mean of a window.

    Args:
        height: Rows of the window.
        width: Columns of the window.
        window: Stride and padding.
        counts_padding: Whether the padding counts, as zeros.
    """

    height: int
    width: int
    window: Window
    counts_padding: bool

    def __call__(self, *values: Tensor) -> Tensor:
        """Return [batch, channels, height, width]."""
        import torch
        import torch.nn.functional as F

        top, left, bottom, right = self.window.padding

        def mean(numbers: Tensor) -> Tensor:
            numbers = F.pad(numbers, (left, right, top, bottom))
            return F.avg_pool2d(numbers, (self.height, self.width), self.window.stride)

        found = mean(values[0])
        return found if self.counts_padding else found / mean(torch.ones_like(values[0][:1, :1]))

    def build(self, builder: Builder) -> None:
        """Append the step."""
        source, target = (builder.feature(name) for name in (self.inputs[0], self.output))
        top, left = self.window.padding[:2]
        stride = self.window.stride
        builder.steps.append(
            AveragePool(source, target, self.height, self.width, stride, top, left, self.counts_padding)
        )


@dataclass(frozen=True, eq=False)
class _OfWindow(Step):
    """A step that looks at windows; those of pixel (y, x) begin with pixel (stride * y - top, stride * x - left).

    Args:
        input: The feature read; nothing outside of it is.
        output: What is written.
        height: Rows of the window.
        width: Columns of the window.
        stride: Of rows and columns.
        top: See above.
        left: See above.
    """

    input: Feature
    output: Feature
    height: int
    width: int
    stride: int = 1
    top: int = 0
    left: int = 0

    def fits(self, inputs: tuple[tuple[int, int, int], ...]) -> bool:
        """See ``Step``; each window holds a pixel at least."""
        if not 0 < self.stride <= LARGEST_WINDOW or self.input.channels != self.output.channels:
            return False
        axes = zip(
            (self.height, self.width), (self.top, self.left), self.input.shape[:2], self.output.shape[:2], strict=True
        )
        return all(
            0 < size <= LARGEST_SIDE and 0 <= before < size and (count - 1) * self.stride - before < length
            for size, before, length, count in axes
        )

    def _window(self) -> Fields:
        return {
            "input": self.input,
            "output": self.output,
            "height": self.height,
            "width": self.width,
            "stride": self.stride,
            "above": self.top,
            "before": self.left,
        }


@dataclass(frozen=True, eq=False)
class MaxPool(_OfWindow):
    """The largest byte of each window; both features have the same scales and zeros."""

    def fields(self, memory: Memory, instructions: Instructions) -> Fields:
        """See ``Step``."""
        return {"kind": Kind.POOL, **self._window()}


@dataclass(frozen=True, eq=False)
class AveragePool(_OfWindow):
    """The mean of each window, rounded to the output's bytes.

    Args:
        counts_padding: Divide by the window's size, not by the number of its pixels that are inside.
    """

    counts_padding: bool = False

    def fits(self, inputs: tuple[tuple[int, int, int], ...]) -> bool:
        """See ``Step``."""
        return self.height * self.width <= MOST_PIXELS and super().fits(inputs)

    def fields(self, memory: Memory, instructions: Instructions) -> Fields:
        """See ``Step``."""
        return self._window() | {
            "kind": Kind.AVERAGE,
            "choice": self.counts_padding,
            "multiplier": padded(self.input.scale / self.output.scale),
            "other_multiplier": padded(self.input.zero),
            "offset": padded(self.output.zero),
        }


def _window_of(graph: Graph, node: Node) -> tuple[int, int, Window]:
    """Return a pool's height, width and stride, its padding as the size of the output has it."""
    height, width = (int(size) for size in node.attributes["kernel_shape"])
    window = read_window(node)
    if window.dilation != 1:
        raise node.refusal("it is dilated")
    if not (window.padding[0] < height and window.padding[1] < width):
        raise node.refusal(f"its padding {window.padding} is as large as its window")
    inputs, outputs = (graph.feature_shape(name, node)[1:] for name in (node.inputs[0], node.output))
    ends = [
        (count - 1) * window.stride + size - length - before
        for count, size, length, before in zip(outputs, (height, width), inputs, window.padding[:2], strict=True)
    ]
    return height, width, replace(window, padding=(*window.padding[:2], *ends))  # type: ignore[arg-type]


def read_max(graph: Graph, node: Node) -> None:
    """Read a MaxPool."""
    height, width, window = _window_of(graph, node)
    graph.layers.append(Pool(node.name, (graph.feature(node.inputs[0], node),), node.output, height, width, window))


def read_average(graph: Graph, node: Node) -> None:
    """Read an AveragePool."""
    given = read_window(node).padding
    height, width, window = _window_of(graph, node)
    if any(end > pad for end, pad in zip(window.padding[2:], given[2:], strict=True)):
        raise node.refusal("its last windows reach beyond the padding")
    counts = bool(node.attributes.get("count_include_pad", 0))
    names = (graph.feature(node.inputs[0], node),)
    graph.layers.append(Average(node.name, names, node.output, height, width, window, counts))


def read_global_average(graph: Graph, node: Node) -> None:
    """Read a GlobalAveragePool."""
    _, height, width = graph.feature_shape(node.inputs[0], node)
    names = (graph.feature(node.inputs[0], node),)
    graph.layers.append(Average(node.name, names, node.output, height, width, Window(), counts_padding=False))


def read_mean(graph: Graph, node: Node) -> None:
    """Read a ReduceMean over all pixels."""
    axes = graph.optional(node, 1)
    if axes is None:
        axes = np.array(node.attributes.get("axes", ()))
    if graph.rank(node.inputs[0]) != 4 or sorted(int(axis) % 4 for axis in axes) != [2, 3]:
        raise node.refusal("expected the mean of all pixels of a feature")
    read_global_average(graph, node)
