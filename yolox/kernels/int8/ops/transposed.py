"""Transposed convolutions: a convolution for each place of an output pixel in its block of stride by stride pixels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from yolox.kernels.int8.float_ir import Layer
from yolox.kernels.int8.onnx_graph import Graph, Node
from yolox.kernels.int8.ops.activation import follower
from yolox.kernels.int8.ops.convolution import Convolution, Window, read_window
from yolox.kernels.int8.quantize import QuantizationParameters, RangeObserver

if TYPE_CHECKING:
    from torch import Tensor

    from yolox.kernels.int8.builder import Builder


@dataclass(frozen=True, eq=False)
class Interleave(Layer):
    """Features become blocks of one: number r * every + c gives the pixels (every * y + r, every * x + c)."""

    every: int

    def __call__(self, *values: Tensor) -> Tensor:
        """Return [batch, channels, height * every, width * every]."""
        import torch

        return torch.nn.functional.pixel_shuffle(torch.stack(values, 2).flatten(1, 2), self.every)

    def parameters(
        self, known: dict[str, QuantizationParameters], observer: RangeObserver, quantile: float
    ) -> QuantizationParameters:
        """Return the parameters, which become those of all inputs, as they are written here at once."""
        found = observer.parameters(quantile)
        known.update(dict.fromkeys(self.inputs, found))
        return found

    def build(self, builder: Builder) -> None:
        """Append nothing: the inputs were written here."""


def read_transposed_convolution(graph: Graph, node: Node) -> None:
    """Read a ConvTranspose.

    Output pixel ``y`` gets what input pixel ``i`` gives its tap ``y + padding - stride * i``: the taps that differ by
    the stride form a convolution of stride 1, for every stride-th output pixel.
    """
    weight = np.array(graph.constant(node, 1, "weights"), np.float32)
    channels = weight.shape[1]
    bias = np.array(graph.constant(node, 2, "biases") if len(node.inputs) > 2 else np.zeros(channels), np.float32)
    window = read_window(node)
    if weight.ndim != 4 or int(node.attributes.get("group", 1)) != 1 or window.dilation != 1:
        raise node.refusal("expected two axes of pixels, one group and no dilation")
    source, every = graph.feature(node.inputs[0], node), window.stride
    inputs, outputs = graph.feature_shape(node.inputs[0], node)[1:], graph.shape(node.output, node)[1:]
    if min(weight.shape[2:]) < every or any(size % every for size in outputs):
        raise node.refusal(f"expected a window and an output of at least and whole multiples of its stride {every}")
    found = follower(graph, node.output)
    weight, bias = weight * np.float32(found.factor), bias * np.float32(found.factor) + np.float32(found.shift)
    parts = []
    for place in product(range(every), repeat=2):
        taps, before, after = [], [], []
        for axis in range(2):
            first = place[axis] + window.padding[axis]
            chosen = range(first % every, weight.shape[2 + axis], every)[::-1]
            taps.append(list(chosen))
            before.append((chosen[0] - first) // every)
            after.append(outputs[axis] // every - 1 + len(chosen) - inputs[axis] - before[axis])
        weights = np.ascontiguousarray(weight.transpose(1, 0, 2, 3)[:, :, taps[0]][:, :, :, taps[1]])
        padding = (before[0], before[1], after[0], after[1])
        parts.append(
            Convolution(
                f"{node.name} {place}",
                (source,),
                f"{found.output} {place}",
                weights,
                bias,
                replace(Window(), padding=padding),
                activation=found.function,
                alpha=found.alpha,
            )
        )
    graph.layers += [*parts, Interleave(node.name, tuple(part.output for part in parts), found.output, every)]
