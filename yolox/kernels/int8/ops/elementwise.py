"""Sums and products of two features, number by number; one pixel may stand for all, as in squeeze-and-excitation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from yolox.kernels.int8.bindings import Instructions, Kind
from yolox.kernels.int8.float_ir import Layer
from yolox.kernels.int8.int8_ir import Activation, Feature, Fields, Step, padded
from yolox.kernels.int8.onnx_graph import Graph, Node
from yolox.kernels.int8.ops.activation import activate, own_activation
from yolox.kernels.int8.ops.affine import read_arithmetic_with_constant

if TYPE_CHECKING:
    from torch import Tensor

    from yolox.kernels.int8.builder import Builder
    from yolox.kernels.int8.memory import Memory


@dataclass(frozen=True, eq=False)
class Sum(Layer):
    """The sum of two features, and ReLU or a clip behind it, which rounding to bytes computes: see ``build``."""

    activation: Activation = Activation.NONE
    alpha: float = 0.0

    def __call__(self, *values: Tensor) -> Tensor:
        """Return the shape that came."""
        return activate(values[0] + values[1], self.activation, self.alpha)

    def build(self, builder: Builder) -> None:
        """Append the step; after ReLU the byte 0 is the number 0, and after a clip 255 is its bound or less."""
        left, right = (builder.feature(name) for name in self.inputs)
        builder.steps.append(Add(left, right, builder.feature(self.output)))


@dataclass(frozen=True, eq=False)
class Product(Layer):
    """The product of two features."""

    def __call__(self, *values: Tensor) -> Tensor:
        """Return the shape of the larger one."""
        return values[0] * values[1]

    def build(self, builder: Builder) -> None:
        """Append the step."""
        left, right = (builder.feature(name) for name in self.inputs)
        builder.steps.append(Multiply(left, right, builder.feature(self.output)))


@dataclass(frozen=True, eq=False)
class _OfTwo(Step):
    """A step of two features.

    Args:
        left: Of the output's shape.
        right: Likewise, or one pixel that stands for all.
        output: What is written.
    """

    left: Feature
    right: Feature
    output: Feature

    def fits(self, inputs: tuple[tuple[int, int, int], ...]) -> bool:
        """See ``Step``."""
        one_pixel = (1, 1, self.output.channels)
        return self.left.shape == self.output.shape and self.right.shape in (self.output.shape, one_pixel)

    @property
    def reads_its_rows(self) -> bool:
        """See ``Step``."""
        return self.right.shape == self.output.shape

    def _operands(self, memory: Memory) -> Fields:
        right = memory.feature(self.right)
        if self.right.shape != self.output.shape:
            right.row = right.pixel = 0
        return {"input": self.left, "other": right, "output": self.output}


@dataclass(frozen=True, eq=False)
class Add(_OfTwo):
    """The sum of the real values of two features, rounded to the output's bytes."""

    def fields(self, memory: Memory, instructions: Instructions) -> Fields:
        """See ``Step``."""
        left, right, output = self.left, self.right, self.output
        zeros = left.scale * left.zero + right.scale * right.zero
        return self._operands(memory) | {
            "kind": Kind.ADD,
            "multiplier": padded(left.scale / output.scale),
            "other_multiplier": padded(right.scale / output.scale),
            "offset": padded(output.zero - zeros / output.scale),
        }


@dataclass(frozen=True, eq=False)
class Multiply(_OfTwo):
    """The product of the real values of two features, rounded to the output's bytes."""

    def fields(self, memory: Memory, instructions: Instructions) -> Fields:
        """See ``Step``."""
        return self._operands(memory) | {
            "kind": Kind.MULTIPLY,
            "multiplier": padded(self.left.scale * (self.right.scale / self.output.scale)),
            "other_multiplier": padded(self.left.zero),
            "inverse": padded(self.right.zero),
            "zero": padded(self.output.zero),
        }


def read_arithmetic_of_features(graph: Graph, node: Node) -> None:
    """Read an Add, Sub, Mul or Div of features, or of one and a constant."""
    if set(node.inputs) & graph.constants.keys():
        read_arithmetic_with_constant(graph, node)
        return
    shapes = [graph.feature_shape(name, node) for name in node.inputs]
    names = [graph.feature(name, node) for name in node.inputs]
    whole = graph.feature_shape(node.output, node)
    if shapes[0] != whole:
        shapes, names = shapes[::-1], names[::-1]
    if shapes[0] != whole or shapes[1] not in (whole, (whole[0], 1, 1)):
        raise node.refusal(f"it takes features of the shapes {shapes}, expected the same or one pixel for all")
    if node.kind == "Mul":
        graph.layers.append(Product(node.name, tuple(names), node.output))
        return
    if node.kind != "Add":
        raise node.refusal("expected a sum or a product of features")
    user = graph.only_user(node.output)
    found = own_activation(graph, user) if user is not None and user.kind in ("Relu", "Clip") else None
    if found is None:
        graph.layers.append(Sum(node.name, tuple(names), node.output))
        return
    graph.absorbed.add(found.output)
    graph.layers.append(Sum(node.name, tuple(names), found.output, found.function, found.alpha))
