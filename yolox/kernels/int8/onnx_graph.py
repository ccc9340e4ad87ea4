"""The operators of an ONNX file while they are read: what is known of each value, and what became of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from yolox.errors import YoloxError
from yolox.kernels.int8.float_ir import Layer
from yolox.kernels.int8.int8_ir import Floats


class UnsupportedOperatorError(YoloxError):
    """An operator of the file, by the name of its output, that no layer computes."""

    def __init__(self, message: str, output: str) -> None:
        super().__init__(message)
        self.output = output


@dataclass(frozen=True)
class Node:
    """One operator of the file."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, Any]

    def refusal(self, why: str) -> UnsupportedOperatorError:
        """Return the error that says what of it cannot be computed."""
        return UnsupportedOperatorError(
            f"no 8-bit kernel for {self.kind} (node '{self.name}'): {why}. Use another method.", self.output
        )

    def text(self, name: str, default: str) -> str:
        """Return an attribute that is a word."""
        value = self.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else str(value)


@dataclass
class Graph:
    """What readers of operators look at and write to.

    Args:
        nodes: The operators, in the order of execution.
        constants: Their constants.
        shapes: Shapes of the other values with the batch axis, 0 where a size is free.
        inputs: Names of the network's inputs.
        outputs: Names of its outputs.

    Attributes:
        layers: What was read.
        matrices: Constants [rows, columns] that layers read.
        absorbed: Outputs of operators that are part of a layer already.
        features: For values that are a feature under another name, that feature.
        flattened: For vectors of all numbers of a feature, that feature.
    """

    nodes: list[Node]
    constants: dict[str, NDArray[Any]]
    shapes: dict[str, tuple[int, ...]]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    layers: list[Layer] = field(default_factory=list)
    matrices: dict[str, Floats] = field(default_factory=dict)
    absorbed: set[str] = field(default_factory=set)
    features: dict[str, str] = field(default_factory=dict)
    flattened: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._users: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                self._users.setdefault(name, []).append(node)

    def rank(self, name: str) -> int:
        """Return the number of axes of a value, the batch axis included."""
        return len(self.shapes.get(name, ()))

    def shape(self, name: str, node: Node) -> tuple[int, ...]:
        """Return the sizes behind the batch axis.

        Raises:
            UnsupportedOperatorError: When the file does not tell them.
        """
        shape = self.shapes.get(name, ())[1:]
        if not shape or 0 in shape:
            raise node.refusal(f"the file does not tell the shape of '{name}'")
        return shape

    def feature_shape(self, name: str, node: Node) -> tuple[int, int, int]:
        """Return channels, height and width; a vector is one pixel."""
        shape = self.shape(name, node)
        if len(shape) == 1:
            return shape[0], 1, 1
        if len(shape) != 3:
            raise node.refusal(
                f"it reads '{name}' with {len(shape) + 1} axes, expected [batch, channels, rows, columns]"
            )
        return shape[0], shape[1], shape[2]

    def constant(self, node: Node, index: int, what: str) -> NDArray[Any]:
        """Return an input that is the same for all images.

        Raises:
            UnsupportedOperatorError: When it is not.
        """
        name = node.inputs[index] if index < len(node.inputs) else ""
        if name not in self.constants:
            raise node.refusal(f"its {what} are not constant")
        return self.constants[name]

    def optional(self, node: Node, index: int) -> NDArray[Any] | None:
        """Return a constant input, or ``None`` where there is none."""
        return self.constants.get(node.inputs[index]) if index < len(node.inputs) else None

    def users(self, name: str) -> list[Node]:
        """Return the operators that read a value."""
        return self._users.get(name, [])

    def only_user(self, name: str) -> Node | None:
        """Return the only operator that reads a value."""
        users = self.users(name)
        return users[0] if len(users) == 1 and name not in self.outputs else None

    def writer(self, name: str) -> Layer | None:
        """Return the layer that writes a value."""
        return next((layer for layer in reversed(self.layers) if layer.output == name), None)

    def feature(self, name: str, node: Node) -> str:
        """Return the name under which layers know a feature; the network's inputs become bytes first.

        Raises:
            UnsupportedOperatorError: When the value is none.
        """
        from yolox.kernels.int8.ops.pixels import Pixels

        if name in self.features:
            return self.features[name]
        if name in self.constants or self.rank(name) not in (2, 4):
            raise node.refusal(
                f"it reads '{name}' with {self.rank(name)} axes, expected [batch, channels, rows, columns]"
            )
        if name not in self.inputs:
            if self.writer(name) is None:
                raise node.refusal(f"it reads '{name}', which no 8-bit layer writes")
            return name
        if self.rank(name) != 4:
            raise node.refusal(f"it reads the input '{name}', expected images [batch, channels, rows, columns]")
        pixels = f"{name}_bytes"
        if self.writer(pixels) is None:
            self.layers.append(Pixels(name, (name,), pixels, 1, tuple(range(self.shapes[name][1]))))
        return pixels

    def matrix(self, name: str, node: Node) -> str:
        """Return the name of a matrix; constants get two axes.

        Raises:
            UnsupportedOperatorError: When the value is none.
        """
        if name in self.constants:
            value = np.asarray(self.constants[name], np.float32)
            if value.ndim > 2 and not all(size == 1 for size in value.shape[:-2]):
                raise node.refusal(f"its constant has the shape {value.shape}, expected [rows, columns]")
            lines = value.shape[-2:]
            self.matrices[name] = np.ascontiguousarray(value.reshape((1,) * (2 - len(lines)) + lines))
        elif self.rank(name) != 3 or self.writer(name) is None:
            raise node.refusal(f"it reads '{name}' with {self.rank(name)} axes, expected [batch, rows, columns]")
        return name


OperatorReader: TypeAlias = Callable[[Graph, Node], None]
"""Appends the layers of an operator, and of what belongs to it, to a graph.

Raises:
    UnsupportedOperatorError: When no layer computes it.
"""
