"""Functions of one argument: part of the layer before them where they can be, otherwise a layer of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from yolox.kernels.int8.int8_ir import Activation
from yolox.kernels.int8.onnx_graph import Graph, Node

if TYPE_CHECKING:
    from torch import Tensor


LEAKY_SLOPE = 0.01
"""ONNX's default of LeakyRelu."""

PLAIN_ACTIVATIONS = {
    "Relu": Activation.RELU,
    "Sigmoid": Activation.SIGMOID,
    "HardSwish": Activation.HARD_SWISH,
    "Tanh": Activation.TANH,
    "Gelu": Activation.GELU,
}
"""Operators without a parameter; others are in ``own_activation``."""


@dataclass(frozen=True)
class Activated:
    """What a value becomes: ``function(factor * value + shift)``.

    Args:
        output: The name of the result.
        function: The activation.
        alpha: Its parameter: the slope of a LeakyReLU, the upper bound of a Clip.
        factor: See above.
        shift: See above.
    """

    output: str
    function: Activation = Activation.NONE
    alpha: float = 0.0
    factor: float = 1.0
    shift: float = 0.0


def activate(values: Tensor, function: Activation, alpha: float) -> Tensor:
    """Return the activated values."""
    import torch.nn.functional as F

    functions: dict[Activation, Callable[[Tensor], Tensor]] = {
        Activation.NONE: lambda z: z,
        Activation.RELU: F.relu,
        Activation.LEAKY_RELU: lambda z: F.leaky_relu(z, alpha),
        Activation.SILU: F.silu,
        Activation.SIGMOID: F.sigmoid,
        Activation.CLIP: lambda z: z.clamp(0.0, alpha),
        Activation.HARD_SWISH: F.hardswish,
        Activation.TANH: F.tanh,
        Activation.GELU: F.gelu,
    }
    return functions[function](values)


def own_activation(graph: Graph, node: Node) -> Activated | None:
    """Return what an operator does to its first input; ``None`` for operators that are no activation of ours.

    Raises:
        UnsupportedOperatorError: For one with parameters that no kernel has.
    """
    if node.kind in PLAIN_ACTIVATIONS:
        if node.kind == "Gelu" and node.text("approximate", "none") != "none":
            raise node.refusal("it is approximated by a hyperbolic tangent, expected the exact one")
        return Activated(node.output, PLAIN_ACTIVATIONS[node.kind])
    if node.kind == "LeakyRelu":
        return Activated(node.output, Activation.LEAKY_RELU, float(node.attributes.get("alpha", LEAKY_SLOPE)))
    if node.kind == "HardSigmoid":
        factor, shift = node.attributes.get("alpha", 0.2), node.attributes.get("beta", 0.5)
        return Activated(node.output, Activation.CLIP, 1.0, float(factor), float(shift))
    if node.kind == "Clip":
        low, high = (graph.optional(node, index) for index in (1, 2))
        if low is None or float(low) != 0.0 or (high is not None and not float(high) > 0.0):
            raise node.refusal("expected a lower bound of 0")
        if high is None or not np.isfinite(float(high)):
            return Activated(node.output, Activation.RELU)
        return Activated(node.output, Activation.CLIP, float(high))
    return None


def follower(graph: Graph, name: str) -> Activated:
    """Return what the activation that alone reads a value makes of it, and count it as read."""
    user = graph.only_user(name)
    found = own_activation(graph, user) if user is not None and user.inputs[0] == name else None
    if found is not None:
        graph.absorbed.add(found.output)
        return found
    return _product_with_gate(graph, name) or _gelu(graph, name) or Activated(name)


def _product_with_gate(graph: Graph, name: str) -> Activated | None:
    """Return SiLU or HardSwish written as a product of a value with its sigmoid."""
    users = graph.users(name)
    gate = next((user for user in users if user.kind in ("Sigmoid", "HardSigmoid")), None)
    product = next((user for user in users if user.kind == "Mul"), None)
    if gate is None or product is None or len(users) != 2 or name in graph.outputs:
        return None
    if set(product.inputs) != {name, gate.output} or graph.only_user(gate.output) is not product:
        return None
    function = Activation.SILU
    if gate.kind == "HardSigmoid":
        parameters = (gate.attributes.get("alpha", 0.2), gate.attributes.get("beta", 0.5))
        if not np.allclose(parameters, (1 / 6, 0.5)):
            return None
        function = Activation.HARD_SWISH
    graph.absorbed |= {gate.output, product.output}
    return Activated(product.output, function)


def _gelu(graph: Graph, name: str) -> Activated | None:
    """Return GELU written as x * (0.5 * (erf(x / sqrt(2)) + 1)), as PyTorch exports it."""
    users = graph.users(name)
    if name in graph.outputs or sorted(user.kind for user in users) != ["Div", "Mul"]:
        return None
    chain: list[Node] = []
    quotient, product = sorted(users, key=lambda user: user.kind)
    for kind, constant in (("Div", 2**0.5), ("Erf", None), ("Add", 1.0), ("Mul", 0.5)):
        node = quotient if not chain else graph.only_user(chain[-1].output)
        if node is None or node.kind != kind:
            return None
        numbers = [graph.constants[one] for one in node.inputs if one in graph.constants]
        if constant is not None and not (len(numbers) == 1 and np.allclose(numbers[0], constant)):
            return None
        chain.append(node)
    if graph.only_user(chain[-1].output) is not product or set(product.inputs) != {name, chain[-1].output}:
        return None
    graph.absorbed |= {*(node.output for node in chain), product.output}
    return Activated(product.output, Activation.GELU)
