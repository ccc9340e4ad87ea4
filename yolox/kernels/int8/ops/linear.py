"""Fully connected layers: convolutions of one pixel, or of all pixels of a feature that was flattened."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from yolox.kernels.int8.onnx_graph import Graph, Node
from yolox.kernels.int8.ops.convolution import Window, append_convolution


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
    _append(graph, node, weight * node.attributes.get("alpha", 1.0), bias)


def read_matmul(graph: Graph, node: Node) -> None:
    """Read a MatMul of vectors with constant weights, and the addition of constants behind it."""
    weight = np.array(graph.constant(node, 1, "weights"), np.float32)
    if weight.ndim != 2 or graph.rank(node.inputs[0]) != 2:
        raise node.refusal("expected vectors times a constant matrix")
    _append(graph, node, weight.T, np.zeros(weight.shape[1], np.float32))


def _append(graph: Graph, node: Node, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> None:
    """Append a layer with weights [out, in]."""
    origin = graph.flattened.get(node.inputs[0], node.inputs[0])
    source = graph.feature(origin, node)
    channels, height, width = graph.feature_shape(origin, node)
    if channels * height * width != weight.shape[1]:
        raise node.refusal(f"its weights take {weight.shape[1]} numbers, {channels * height * width} arrive")
    weights = weight.reshape(len(weight), channels, height, width)
    append_convolution(graph, node, source, weights, bias, Window(), 1)
