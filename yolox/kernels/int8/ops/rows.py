"""Features as matrices and vectors: the operators that only arrange numbers anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from yolox.kernels.int8.float_ir import Layer
from yolox.kernels.int8.onnx_graph import Graph, Node
from yolox.kernels.int8.ops.conv_step import Conv
from yolox.kernels.int8.ops.convolution import Convolution
from yolox.kernels.int8.ops.pixels import read_blocks

if TYPE_CHECKING:
    from torch import Tensor

    from yolox.kernels.int8.builder import Builder


@dataclass(frozen=True, eq=False)
class Rows(Layer):
    """A feature as a matrix, a pixel a row."""

    def __call__(self, *values: Tensor) -> Tensor:
        """Return [batch, height * width, channels]."""
        return values[0].flatten(2).transpose(1, 2)

    def build(self, builder: Builder) -> None:
        """Let the convolution before write floats, or turn bytes into them: a convolution of each channel with 1."""
        matrix, row, column = builder.matrix(self.output)
        writer = builder.writers.get(self.inputs[0])
        if self.inputs[0] not in builder.parameters:
            assert isinstance(writer, Convolution)
            writer.build_into(builder, matrix, row, column)
        else:
            feature = builder.feature(self.inputs[0])
            ones = np.ones((feature.channels, 1, 1, 1), np.int8)
            offset = (-feature.scale * feature.zero).astype(np.float32)
            builder.steps.append(
                Conv(feature, matrix, ones, feature.scale, offset, depthwise=True, first_row=row, first_column=column)
            )
        builder.view_all(self.output, matrix)


@dataclass(frozen=True, eq=False)
class Columns(Layer):
    """The columns ``first ... last`` (not included) of a matrix."""

    first: int
    last: int

    def __call__(self, *values: Tensor) -> Tensor:
        """Return [batch, rows, last - first]."""
        return values[0][:, :, self.first : self.last]

    def build(self, builder: Builder) -> None:
        """Append nothing: readers read these columns."""
        builder.view_columns(self.output, self.inputs[0], self.first, self.last)


def read_reshape(graph: Graph, node: Node) -> None:
    """Read a Reshape, Flatten, Squeeze or Unsqueeze: of one pixel, of a feature that becomes rows, or of blocks."""
    if graph.rank(node.output) in (2, 4) and not _is_followed(graph, node, "Transpose"):
        _read_vector(graph, node)
        return
    transpose = graph.only_user(node.output)
    if transpose is None or transpose.kind != "Transpose" or graph.rank(node.inputs[0]) != 4:
        raise node.refusal("expected pixels rearranged to channels, or a feature that becomes rows or a vector")
    perm = tuple(transpose.attributes["perm"])
    if perm == (0, 2, 1) and graph.shape(node.inputs[0], node)[0] == graph.shape(node.output, node)[0]:
        graph.absorbed.add(transpose.output)
        graph.layers.append(Rows(node.name, (graph.feature(node.inputs[0], node),), transpose.output))
        return
    if len(perm) != 6:
        raise node.refusal("expected pixels rearranged to channels, or a feature that becomes rows or a vector")
    read_blocks(graph, node, transpose)


def _is_followed(graph: Graph, node: Node, kind: str) -> bool:
    user = graph.only_user(node.output)
    return user is not None and user.kind == kind


def _read_vector(graph: Graph, node: Node) -> None:
    """Read a feature whose numbers stay where they are: one of a single pixel, or a vector of all of them."""
    source = graph.feature(node.inputs[0], node)
    before, after = (graph.feature_shape(name, node) for name in (node.inputs[0], node.output))
    if before == after:
        graph.features[node.output] = source
    elif after == (before[0] * before[1] * before[2], 1, 1) and node.output not in graph.outputs:
        graph.flattened[node.output] = node.inputs[0]
    else:
        raise node.refusal(f"it makes {after} of a feature {before}")


def read_identity(graph: Graph, node: Node) -> None:
    """Read an Identity or a Dropout, which does nothing when a network is used."""
    graph.features[node.output] = graph.feature(node.inputs[0], node)


def read_transpose(graph: Graph, node: Node) -> None:
    """Read a feature that becomes a matrix."""
    reshape = graph.only_user(node.output)
    if reshape is None or reshape.kind != "Reshape" or tuple(node.attributes["perm"]) != (0, 2, 3, 1):
        raise node.refusal("expected a feature that becomes rows")
    channels, height, width = graph.feature_shape(node.inputs[0], node)
    if graph.shape(reshape.output, reshape) != (height * width, channels):
        raise reshape.refusal("expected one row a pixel")
    graph.absorbed.add(reshape.output)
    graph.layers.append(Rows(node.name, (graph.feature(node.inputs[0], node),), reshape.output))


def read_slice(graph: Graph, node: Node) -> None:
    """Read a Slice of a matrix's columns."""
    rank = graph.rank(node.inputs[0])
    first, last, axes = (graph.constant(node, index, "bounds") for index in (1, 2, 3))
    steps = graph.constant(node, 4, "bounds") if len(node.inputs) > 4 else np.ones(1)
    if rank != 3 or first.size != 1 or int(axes[0]) % rank != 2 or int(steps[0]) != 1:
        raise node.refusal("expected columns of a matrix, one beside the other")
    width = graph.shape(node.inputs[0], node)[1]
    bounds = range(width)[int(first[0]) : int(last[0])]
    name = graph.matrix(node.inputs[0], node)
    graph.layers.append(Columns(node.name, (name,), node.output, bounds.start, bounds.stop))
