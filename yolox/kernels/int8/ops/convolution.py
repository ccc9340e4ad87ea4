"""Convolutions of any window, stride and number of groups, and what is computed as one: products and padding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from yolox.kernels.int8.float_ir import Layer
from yolox.kernels.int8.int8_ir import LARGEST_WINDOW, Activation, Feature, Floats, Matrix
from yolox.kernels.int8.onnx_graph import Graph, Node
from yolox.kernels.int8.ops.activation import activate, follower
from yolox.kernels.int8.ops.conv_step import Conv
from yolox.kernels.int8.quantize import QuantizedWeights

if TYPE_CHECKING:
    from torch import Tensor

    from yolox.kernels.int8.builder import Builder


LEAST_OUTPUTS = 16
"""Channels that a step computes at least: narrower groups share one, whose weights between groups are zero."""


@dataclass(frozen=True)
class Window:
    """Where a window goes.

    Args:
        stride: Of rows and columns.
        dilation: Likewise.
        padding: Above, left, below and right; negative where pixels are left out.
    """

    stride: int = 1
    dilation: int = 1
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)

    @property
    def is_symmetric(self) -> bool:
        """Whether the padding above is that below, and the padding on the left that on the right."""
        return self.padding[:2] == self.padding[2:]


@dataclass(frozen=True, eq=False)
class Convolution(Layer):
    """A convolution and what follows it.

    Args:
        weight: [out, in / groups, height, width].
        bias: [out].
        window: Stride, dilation and padding.
        groups: Groups of channels.
        activation: What follows.
        alpha: The activation's parameter.
    """

    weight: Floats
    bias: Floats
    window: Window = Window()
    groups: int = 1
    activation: Activation = Activation.NONE
    alpha: float = 0.0

    @property
    def depthwise(self) -> bool:
        """Whether each channel is on its own."""
        return self.groups > 1 and self.groups == len(self.weight) and self.weight.shape[1] == 1

    def linear(self, values: Tensor, weight: Floats, bias: Floats) -> Tensor:
        """Return the convolution's result with other numbers, not activated."""
        import torch
        import torch.nn.functional as F

        top, left, bottom, right = self.window.padding
        numbers = (torch.from_numpy(weight), torch.from_numpy(bias))
        padding = top
        if len({top, left, bottom, right}) > 1 or top < 0:
            values, padding = F.pad(values, (left, right, top, bottom)), 0
        return F.conv2d(values, *numbers, self.window.stride, padding, self.window.dilation, self.groups)

    def __call__(self, *values: Tensor) -> Tensor:
        """Return [batch, out, height, width]."""
        return activate(self.linear(values[0], self.weight, self.bias), self.activation, self.alpha)

    def build(self, builder: Builder) -> None:
        """Append the steps, unless only a matrix is wanted: then ``Rows`` does."""
        if self.output in builder.parameters:
            self.build_into(builder, builder.feature(self.output))

    def build_into(self, builder: Builder, output: Feature | Matrix, row: int = 0, column: int = 0) -> None:
        """Append a step for each group of channels that are computed together."""
        numbers, source = builder.weights[self.output], builder.feature(self.inputs[0])
        top, left = self.window.padding[:2]
        for ins, outs, weight in self._slices(numbers):
            some = slice(outs.start, outs.stop)
            whole = len(outs) == len(self.weight)
            part = output.part(outs.start, len(outs)) if isinstance(output, Feature) and not whole else output
            builder.steps.append(
                Conv(
                    source if len(ins) == source.channels else source.part(ins.start, len(ins)),
                    part,
                    weight,
                    numbers.multiplier[some],
                    numbers.offset[some],
                    stride=self.window.stride,
                    dilation=self.window.dilation,
                    top=top,
                    left=left,
                    activation=self.activation,
                    alpha=self.alpha,
                    depthwise=self.depthwise,
                    first_row=row,
                    first_column=column + (outs.start if isinstance(output, Matrix) else 0),
                )
            )

    def _slices(self, numbers: QuantizedWeights) -> Iterator[tuple[range, range, NDArray[np.int8]]]:
        """Yield the inputs, the outputs and the weights [out, in, height, width] of each step."""
        outs, ins = len(self.weight) // self.groups, self.weight.shape[1]
        if self.groups == 1 or self.depthwise:
            yield range(ins * self.groups), range(len(self.weight)), numbers.weight
            return
        together = min(self.groups, -(-LEAST_OUTPUTS // outs))
        for group in range(0, self.groups, together):
            count = min(together, self.groups - group)
            weight = np.zeros((outs * count, ins * count, *self.weight.shape[2:]), np.int8)
            for i in range(count):
                own = numbers.weight[(group + i) * outs : (group + i + 1) * outs]
                weight[i * outs : (i + 1) * outs, i * ins : (i + 1) * ins] = own
            yield (
                range(group * ins, (group + count) * ins),
                range(group * outs, (group + count) * outs),
                weight,
            )


def append_convolution(
    graph: Graph, node: Node, source: str, weight: NDArray[Any], bias: NDArray[Any], window: Window, groups: int
) -> None:
    """Append a convolution with the activation that follows it."""
    found = follower(graph, node.output)
    if found.factor != 1.0 or found.shift != 0.0:
        weight, bias = weight * found.factor, bias * found.factor + found.shift
    weight, bias = (np.array(one, np.float32, order="C") for one in (weight, bias))  # copies: torch wants to own them
    graph.layers.append(
        Convolution(node.name, (source,), found.output, weight, bias, window, groups, found.function, found.alpha)
    )


def read_window(node: Node) -> Window:
    """Return how a node's window goes.

    Raises:
        UnsupportedOperatorError: For strides or dilations that differ between rows and columns.
    """
    strides = {int(value) for value in node.attributes.get("strides", (1,))}
    dilations = {int(value) for value in node.attributes.get("dilations", (1,))}
    pads = tuple(int(value) for value in node.attributes.get("pads", (0, 0, 0, 0)))
    if len(strides) != 1 or len(dilations) != 1 or len(pads) != 4:
        raise node.refusal(
            f"strides {sorted(strides)}, dilations {sorted(dilations)} and padding {pads}; expected two axes, alike"
        )
    if node.text("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise node.refusal("its padding is not written out")
    return Window(strides.pop(), dilations.pop(), (pads[0], pads[1], pads[2], pads[3]))


def read_convolution(graph: Graph, node: Node) -> None:
    """Read a Conv."""
    weight = np.array(graph.constant(node, 1, "weights"), np.float32)
    bias = graph.constant(node, 2, "biases") if len(node.inputs) > 2 else np.zeros(len(weight))
    if weight.ndim != 4:
        raise node.refusal(f"weights {weight.shape}; expected two axes of pixels")
    window, groups = read_window(node), int(node.attributes.get("group", 1))
    append_convolution(graph, node, graph.feature(node.inputs[0], node), weight, np.array(bias), window, groups)


def read_gemm(graph: Graph, node: Node) -> None:
    """Read a Gemm with constant weights."""
    weight = np.array(graph.constant(node, 1, "weights"), np.float32)
    if node.attributes.get("transA", 0):
        raise node.refusal("its first operand is transposed")
    if not node.attributes.get("transB", 0):
        weight = weight.T
    bias = np.zeros(len(weight), np.float32)
    if len(node.inputs) > 2:
        given = np.array(graph.constant(node, 2, "biases"), np.float32) * node.attributes.get("beta", 1.0)
        bias = np.broadcast_to(given.reshape(-1), bias.shape)
    _append_product(graph, node, weight * node.attributes.get("alpha", 1.0), bias)


def read_matmul(graph: Graph, node: Node) -> None:
    """Read a MatMul of vectors with constant weights, and the addition of constants behind it."""
    weight = np.array(graph.constant(node, 1, "weights"), np.float32)
    if weight.ndim != 2 or graph.rank(node.inputs[0]) != 2:
        raise node.refusal("expected vectors times a constant matrix")
    _append_product(graph, node, weight.T, np.zeros(weight.shape[1], np.float32))


def _append_product(graph: Graph, node: Node, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> None:
    """Append a layer with weights [out, in]."""
    origin = graph.flattened.get(node.inputs[0], node.inputs[0])
    source = graph.feature(origin, node)
    channels, height, width = graph.feature_shape(origin, node)
    if channels * height * width != weight.shape[1]:
        raise node.refusal(f"its weights take {weight.shape[1]} numbers, {channels * height * width} arrive")
    weights = weight.reshape(len(weight), channels, height, width)
    append_convolution(graph, node, source, weights, bias, Window(), 1)


def read_pad(graph: Graph, node: Node) -> None:
    """Read a Pad of rows and columns with zeros."""
    pads = [int(size) for size in graph.constant(node, 1, "sizes")]
    value = graph.optional(node, 2)
    source, rank = graph.feature(node.inputs[0], node), graph.rank(node.inputs[0])
    only_pixels = rank == 4 and len(pads) == 8 and not any((*pads[:2], *pads[4:6]))
    if node.text("mode", "constant") != "constant" or not only_pixels or (value is not None and float(value) != 0.0):
        raise node.refusal(f"sizes {pads} and mode {node.text('mode', 'constant')}; expected zeros around the pixels")
    if not any(pads):
        graph.features[node.output] = source
        return
    if max(map(abs, pads)) > LARGEST_WINDOW:
        raise node.refusal(f"its sizes {pads} are larger than {LARGEST_WINDOW}")
    channels = graph.feature_shape(node.inputs[0], node)[0]
    window = Window(padding=(pads[2], pads[3], pads[6], pads[7]))
    append_convolution(graph, node, source, np.ones((channels, 1, 1, 1)), np.zeros(channels), window, channels)
