"""The network's input: floats or bytes in planes become pixels of bytes; blocks of pixels may become channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from yolox.kernels.int8.bindings import Instructions, Kind
from yolox.kernels.int8.float_ir import Layer
from yolox.kernels.int8.int8_ir import LARGEST_SIDE, Feature, Fields, Step, padded
from yolox.kernels.int8.onnx_graph import Graph, Node
from yolox.kernels.int8.quantize import QuantizationParameters, RangeObserver

if TYPE_CHECKING:
    from torch import Tensor

    from yolox.kernels.int8.builder import Builder
    from yolox.kernels.int8.memory import Memory


@dataclass(frozen=True, eq=False)
class Pixels(Layer):
    """An input of the network, with blocks of pixels rearranged to channels: see ``Pack``."""

    block: int
    order: tuple[int, ...]

    def __call__(self, *values: Tensor) -> Tensor:
        """Return [batch, channels * block * block, height / block, width / block]."""
        import torch

        return torch.nn.functional.pixel_unshuffle(values[0], self.block)[:, list(self.order)]

    def parameters(
        self, known: dict[str, QuantizationParameters], observer: RangeObserver, quantile: float
    ) -> QuantizationParameters:
        """Return bytes that are the input's own where its values are whole numbers of 0...255."""
        count = len(self.order)
        if observer.are_pixels:
            return QuantizationParameters(np.ones(count, np.float32), np.zeros(count, np.uint8))
        return observer.parameters(1.0)

    def build(self, builder: Builder) -> None:
        """Append the step."""
        index = builder.network.inputs.index(self.inputs[0])
        builder.steps.append(Pack(index, builder.feature(self.output), self.block, self.order))


@dataclass(frozen=True, eq=False)
class Pack(Step):
    """The input [channels, height, width], float32 or uint8, is rounded to the output's bytes.

    Args:
        input: Index of the program's input.
        output: ``channels * block * block`` channels, height and width divided by ``block``.
        block: 1, or 2 for space-to-depth: channel ``order[i]`` of the list (channel, row, column in the block, all
            combinations in C order) becomes channel ``i``.
        order: A permutation.
    """

    input: int
    output: Feature
    block: int
    order: tuple[int, ...]

    def fits(self, inputs: tuple[tuple[int, int, int], ...]) -> bool:
        """See ``Step``."""
        if not 0 <= self.input < len(inputs) or not 0 < self.block <= LARGEST_SIDE:
            return False
        channels, height, width = inputs[self.input]
        sizes = (self.output.height * self.block, self.output.width * self.block)
        count = channels * self.block**2
        same = sizes == (height, width) and self.output.channels == count == len(self.order)
        return same and sorted(self.order) == list(range(count))

    def fields(self, memory: Memory, instructions: Instructions) -> Fields:
        """See ``Step``."""
        return {
            "kind": Kind.PACK,
            "output": self.output,
            "size": self.block,
            "index": self.input,
            "order": np.array(self.order, np.int32),
            "inverse": padded(1.0 / self.output.scale),
            "zero": padded(self.output.zero),
        }


def read_blocks(graph: Graph, node: Node, transpose: Node) -> None:
    """Read a Reshape, a Transpose and a Reshape that make blocks of the input's pixels channels.

    Raises:
        UnsupportedOperatorError: When they do something else.
    """
    perm = tuple(transpose.attributes["perm"])
    last = graph.only_user(transpose.output)
    channels, height, width = graph.feature_shape(node.inputs[0], node)
    block = graph.shape(node.output, node)[2]
    rows, columns = height // max(block, 1), width // max(block, 1)
    if (
        last is None
        or last.kind != "Reshape"
        or node.inputs[0] not in graph.inputs
        or graph.shape(node.output, node) != (channels, rows, block, columns, block)
        or (perm[0], *perm[4:]) != (0, 2, 4)
        or graph.shape(last.output, last) != (channels * block * block, rows, columns)
    ):
        raise node.refusal("expected square blocks of the input's pixels as channels")
    graph.absorbed |= {transpose.output, last.output}
    axes = [{1: 0, 3: 1, 5: 2}[axis] for axis in perm[1:4]]
    order = np.arange(channels * block * block).reshape(channels, block, block).transpose(axes)
    numbers = tuple(order.reshape(-1).tolist())
    graph.layers.append(Pixels(node.name, node.inputs[:1], last.output, block, numbers))
