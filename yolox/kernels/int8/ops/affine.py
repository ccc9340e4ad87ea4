"""Arithmetic of a feature with constants and BatchNormalization: channels on their own, a factor and a shift each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolox.kernels.int8.int8_ir import Activation
from yolox.kernels.int8.onnx_graph import Graph, Node
from yolox.kernels.int8.ops.activation import own_activation
from yolox.kernels.int8.ops.convolution import Convolution, Window, append_convolution


def append_affine(graph: Graph, node: Node, name: str, factor: NDArray[Any], shift: NDArray[Any]) -> None:
    """Append ``factor * value + shift`` with what follows it, as part of the convolution before it where it can be.

    Args:
        graph: What is read.
        node: The operator.
        name: Its feature.
        factor: [channels].
        shift: [channels].
    """
    source = graph.feature(name, node)
    before = graph.writer(source)
    alone = source == name and graph.only_user(name) is node
    if isinstance(before, Convolution) and before.activation is Activation.NONE and alone:
        graph.layers.remove(before)
        weight = before.weight * factor.reshape(-1, 1, 1, 1)
        joined = replace(node, name=before.name)
        append_convolution(
            graph, joined, before.inputs[0], weight, before.bias * factor + shift, before.window, before.groups
        )
        return
    append_convolution(graph, node, source, factor.reshape(-1, 1, 1, 1), shift, Window(), len(factor))


def read_batch_normalization(graph: Graph, node: Node) -> None:
    """Read a BatchNormalization with constant statistics."""
    names = ("scales", "biases", "means", "variances")
    scale, bias, mean, variance = (
        np.asarray(graph.constant(node, index + 1, name), np.float64) for index, name in enumerate(names)
    )
    factor = scale / np.sqrt(variance + node.attributes.get("epsilon", 1e-5))
    append_affine(graph, node, node.inputs[0], factor, bias - mean * factor)


def read_arithmetic_with_constant(graph: Graph, node: Node) -> None:
    """Read an Add, Sub, Mul or Div of a feature and a constant that is the same for all pixels."""
    second = node.inputs[1] in graph.constants
    name, constant = node.inputs if second else node.inputs[::-1]
    channels = graph.feature_shape(name, node)[0]
    numbers = np.asarray(graph.constants[constant], np.float64)
    axes = (1,) * max(graph.rank(name) - numbers.ndim, 0) + numbers.shape
    by_channel = axes[:1] == (1,) and all(size == 1 for size in axes[2:]) and axes[1] in (1, channels)
    if len(axes) != graph.rank(name) or not by_channel:
        raise node.refusal(f"its constant has the shape {numbers.shape}, expected one number for each channel")
    values = np.broadcast_to(numbers.reshape(-1), (channels,))
    one, zero = np.ones(channels), np.zeros(channels)
    match node.kind, second:
        case "Add", _:
            factor, shift = one, values
        case "Sub", True:
            factor, shift = one, -values
        case "Sub", False:
            factor, shift = -one, values
        case "Mul", _:
            factor, shift = values, zero
        case "Div", True:
            factor, shift = 1.0 / values, zero
        case _:
            raise node.refusal("a constant is divided by it")
    append_affine(graph, node, name, factor, shift)


def read_activation(graph: Graph, node: Node) -> None:
    """Read an activation of a feature that no layer before it took along."""
    found = own_activation(graph, node)
    if found is None:
        raise node.refusal("this operator is not known, or not at this place")
    source = graph.feature(node.inputs[0], node)
    channels = graph.feature_shape(node.inputs[0], node)[0]
    weight = np.full((channels, 1, 1, 1), found.factor, np.float32)
    shift = np.full(channels, found.shift, np.float32)
    graph.layers.append(
        Convolution(node.name, (source,), found.output, weight, shift, Window(), channels, found.function, found.alpha)
    )
