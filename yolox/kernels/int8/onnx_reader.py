"""An exported ONNX file as layers: which operators there are, which of them belong together, and what cannot be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolox.errors import MissingDependencyError, YoloxError
from yolox.kernels.int8 import float_ir as kinds
from yolox.kernels.int8.float_ir import LEAKY_SLOPE, Convolution, Layer, Network
from yolox.kernels.int8.int8_ir import Activation, Function, Operation

__all__ = ["read_network"]

OPERATIONS = {
    "Add": Operation.ADD,
    "Sub": Operation.SUBTRACT,
    "Mul": Operation.MULTIPLY,
    "Div": Operation.DIVIDE,
}
FUNCTIONS = {"Sigmoid": Function.SIGMOID, "Exp": Function.EXP}
FOLLOWERS = {"Relu": Activation.RELU, "LeakyRelu": Activation.LEAKY_RELU, "Sigmoid": Activation.SIGMOID}


@dataclass(frozen=True)
class _Node:
    """One operator of the file."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, Any]

    def refusal(self, why: str) -> YoloxError:
        """Return the error that says what of it cannot be computed."""
        return YoloxError(f"no 8-bit kernel for {self.kind} (node '{self.name}'): {why}. Use another method.")


def read_network(path: Path) -> Network:
    """Return the network of an ONNX file.

    Raises:
        MissingDependencyError: Without onnx.
        YoloxError: When it holds something that no layer computes, with the operator's name.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingDependencyError("onnx", "pip install onnx onnxscript") from error
    model = onnx.shape_inference.infer_shapes(onnx.load(str(path)))
    graph = model.graph
    constants = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
    nodes = []
    for item in graph.node:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in item.attribute}
        if item.op_type == "Constant" and "value" in attributes:
            constants[item.output[0]] = onnx.numpy_helper.to_array(attributes["value"])
        else:
            nodes.append(_Node(item.op_type, item.name, tuple(item.input), item.output[0], attributes))
    shapes = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    inputs = tuple(value.name for value in graph.input if value.name not in constants)
    return _Reader(nodes, constants, shapes, inputs, tuple(value.name for value in graph.output)).network()


class _Reader:
    """Goes through the operators in their order; those that belong to an earlier one are left out.

    Args:
        nodes: The operators.
        constants: Their constants.
        shapes: Shapes of the other values, 0 where a size is free.
        inputs: Names of the network's inputs.
        outputs: Names of its outputs.
    """

    def __init__(
        self,
        nodes: list[_Node],
        constants: dict[str, NDArray[Any]],
        shapes: dict[str, tuple[int, ...]],
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
    ) -> None:
        self.nodes, self.constants, self.shapes = nodes, constants, shapes
        self.inputs, self.outputs = inputs, outputs
        self.layers: list[Layer] = []
        self.matrices: dict[str, NDArray[np.float32]] = {}
        self.absorbed: set[str] = set()
        self.users: dict[str, list[_Node]] = {}
        for node in nodes:
            for name in dict.fromkeys(node.inputs):
                self.users.setdefault(name, []).append(node)

    def network(self) -> Network:
        """Return the layers.

        Raises:
            YoloxError: See ``read_network``.
        """
        readers: dict[str, Callable[[_Node], None]] = {
            "Conv": self._convolution,
            "MaxPool": self._pool,
            "Resize": self._enlarge,
            "Concat": self._concatenation,
            "Reshape": self._reshape,
            "Transpose": self._transpose,
            "Slice": self._slice,
            **dict.fromkeys(FUNCTIONS, self._function),
            **dict.fromkeys(OPERATIONS, self._operation),
        }
        for node in self.nodes:
            if node.output in self.absorbed:
                continue
            if node.kind not in readers:
                raise node.refusal("this operator is not known, or not at this place")
            readers[node.kind](node)
        for name in self.outputs:
            if self._rank(name) != 3:
                raise YoloxError(
                    f"no 8-bit kernel for outputs such as '{name}' with {self._rank(name)} axes; expected "
                    "[batch, rows, columns]. Use another method."
                )
        return Network(self.inputs, tuple(self.layers), self.outputs, self.matrices)

    def _rank(self, name: str) -> int:
        return len(self.shapes.get(name, ()))

    def _shape(self, name: str, node: _Node) -> tuple[int, ...]:
        """Return the sizes behind the batch axis."""
        shape = self.shapes.get(name, ())[1:]
        if not shape or 0 in shape:
            raise node.refusal(f"the file does not tell the shape of '{name}'")
        return shape

    def _constant(self, node: _Node, index: int, what: str) -> NDArray[Any]:
        name = node.inputs[index] if index < len(node.inputs) else ""
        if name not in self.constants:
            raise node.refusal(f"its {what} are not constant")
        return self.constants[name]

    def _user(self, name: str) -> _Node | None:
        """Return the only operator that reads a value."""
        users = self.users.get(name, [])
        return users[0] if len(users) == 1 and name not in self.outputs else None

    def _feature(self, name: str) -> str:
        """Return the name of a feature; the network's inputs become bytes first."""
        if name not in self.inputs:
            return name
        pixels = f"{name}_bytes"
        if all(layer.output != pixels for layer in self.layers):
            self.layers.append(kinds.Pixels(name, (name,), pixels, 1, tuple(range(self.shapes[name][1]))))
        return pixels

    def _matrix(self, name: str, node: _Node) -> str:
        """Return the name of a matrix; constants get two axes."""
        if name in self.constants:
            value = np.asarray(self.constants[name], np.float32)
            if value.ndim > 2 and not all(size == 1 for size in value.shape[:-2]):
                raise node.refusal(f"its constant has the shape {value.shape}, expected [rows, columns]")
            lines = value.shape[-2:]
            self.matrices[name] = np.ascontiguousarray(value.reshape((1,) * (2 - len(lines)) + lines))
        elif self._rank(name) != 3:
            raise node.refusal(f"it reads '{name}' with {self._rank(name)} axes, expected [batch, rows, columns]")
        return name

    def _convolution(self, node: _Node) -> None:
        weight = np.array(self._constant(node, 1, "weights"), np.float32)
        bias = self._constant(node, 2, "biases") if len(node.inputs) > 2 else np.zeros(len(weight))
        group = int(node.attributes.get("group", 1))
        if weight.ndim != 4 or (group != 1 and not (group == len(weight) and weight.shape[1] == 1)):
            raise node.refusal(f"weights {weight.shape} in {group} groups; expected two axes, one group or depthwise")
        stride, padding = self._window(node)
        output, activation = self._activation(node.output)
        self.layers.append(
            Convolution(
                node.name,
                (self._feature(node.inputs[0]),),
                output,
                weight,
                np.array(bias, np.float32),
                stride,
                padding,
                group > 1,
                activation,
            )
        )

    def _window(self, node: _Node) -> tuple[int, int]:
        """Return stride and padding."""
        strides = {int(value) for value in node.attributes.get("strides", (1,))}
        pads = {int(value) for value in node.attributes.get("pads", (0,))}
        if len(strides) != 1 or len(pads) != 1:
            raise node.refusal(f"strides {sorted(strides)} and padding {sorted(pads)} differ between the sides")
        if set(node.attributes.get("dilations", (1,))) != {1}:
            raise node.refusal("it is dilated")
        if node.attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", "NOTSET"):
            raise node.refusal("its padding is not written out")
        return strides.pop(), pads.pop()

    def _activation(self, name: str) -> tuple[str, Activation]:
        """Return what the activation behind a convolution writes, and which it is."""
        follower = self._user(name)
        if follower is not None and follower.kind in FOLLOWERS:
            slope = follower.attributes.get("alpha", 0.01)
            if follower.kind == "LeakyRelu" and abs(slope - LEAKY_SLOPE) > 1e-6:
                raise follower.refusal(f"its slope is {slope:g}, expected {LEAKY_SLOPE}")
            self.absorbed.add(follower.output)
            return follower.output, FOLLOWERS[follower.kind]
        users = self.users.get(name, [])
        sigmoid = next((user for user in users if user.kind == "Sigmoid"), None)
        product = next((user for user in users if user.kind == "Mul"), None)
        if (
            len(users) == 2
            and sigmoid is not None
            and product is not None
            and set(product.inputs) == {name, sigmoid.output}
            and self._user(sigmoid.output) is product
            and name not in self.outputs
        ):
            self.absorbed |= {sigmoid.output, product.output}
            return product.output, Activation.SILU
        return name, Activation.NONE

    def _pool(self, node: _Node) -> None:
        sizes = {int(value) for value in node.attributes["kernel_shape"]}
        size = max(sizes)
        if len(sizes) != 1 or self._window(node) != (1, size // 2) or size % 2 == 0:
            raise node.refusal("expected a square window of odd size, stride 1, and padding that keeps the size")
        self.layers.append(kinds.Pool(node.name, (self._feature(node.inputs[0]),), node.output, size))

    def _enlarge(self, node: _Node) -> None:
        before, after = self._shape(node.inputs[0], node), self._shape(node.output, node)
        factor = after[1] // before[1]
        whole = after == (before[0], before[1] * factor, before[2] * factor)
        if not whole or node.attributes.get("mode", b"nearest") not in (b"nearest", "nearest"):
            raise node.refusal("expected nearest neighbours and a whole factor, the same for both axes")
        self.layers.append(kinds.Enlarge(node.name, (self._feature(node.inputs[0]),), node.output, factor))

    def _concatenation(self, node: _Node) -> None:
        rank, axis = self._rank(node.output), int(node.attributes["axis"])
        axis += rank if axis < 0 else 0
        if rank == 4 and axis == 1:
            names = tuple(self._feature(name) for name in node.inputs)
            self.layers.append(kinds.Join(node.name, names, node.output))
        elif rank == 3 and axis in (1, 2):
            names = tuple(self._matrix(name, node) for name in node.inputs)
            self.layers.append(kinds.Stack(node.name, names, node.output, axis))
        else:
            raise node.refusal(f"axis {axis} of {rank}; expected channels of features, or rows or columns of matrices")

    def _reshape(self, node: _Node) -> None:
        """Read blocks of pixels that become channels, or a feature that becomes a matrix."""
        transpose = self._user(node.output)
        if transpose is None or transpose.kind != "Transpose" or self._rank(node.inputs[0]) != 4:
            raise node.refusal("expected pixels rearranged to channels, or a feature that becomes rows")
        perm = tuple(transpose.attributes["perm"])
        if perm == (0, 2, 1) and self._shape(node.inputs[0], node)[0] == self._shape(node.output, node)[0]:
            self.absorbed.add(transpose.output)
            self.layers.append(kinds.Rows(node.name, node.inputs[:1], transpose.output))
            return
        last = self._user(transpose.output)
        channels, height, width = self._shape(node.inputs[0], node)
        block = self._shape(node.output, node)[2]
        rows, columns = height // max(block, 1), width // max(block, 1)
        if (
            last is None
            or last.kind != "Reshape"
            or node.inputs[0] not in self.inputs
            or self._shape(node.output, node) != (channels, rows, block, columns, block)
            or (perm[0], *perm[4:]) != (0, 2, 4)
            or self._shape(last.output, last) != (channels * block * block, rows, columns)
        ):
            raise node.refusal("expected square blocks of the input's pixels as channels")
        self.absorbed |= {transpose.output, last.output}
        axes = [{1: 0, 3: 1, 5: 2}[axis] for axis in perm[1:4]]
        order = np.arange(channels * block * block).reshape(channels, block, block).transpose(axes)
        numbers = tuple(order.reshape(-1).tolist())
        self.layers.append(kinds.Pixels(node.name, node.inputs[:1], last.output, block, numbers))

    def _transpose(self, node: _Node) -> None:
        """Read a feature that becomes a matrix."""
        reshape = self._user(node.output)
        if reshape is None or reshape.kind != "Reshape" or tuple(node.attributes["perm"]) != (0, 2, 3, 1):
            raise node.refusal("expected a feature that becomes rows")
        channels, height, width = self._shape(node.inputs[0], node)
        if self._shape(reshape.output, reshape) != (height * width, channels):
            raise reshape.refusal("expected one row a pixel")
        self.absorbed.add(reshape.output)
        self.layers.append(kinds.Rows(node.name, node.inputs[:1], reshape.output))

    def _slice(self, node: _Node) -> None:
        rank = self._rank(node.inputs[0])
        first, last, axes = (self._constant(node, index, "bounds") for index in (1, 2, 3))
        steps = self._constant(node, 4, "bounds") if len(node.inputs) > 4 else np.ones(1)
        if rank != 3 or first.size != 1 or int(axes[0]) % rank != 2 or int(steps[0]) != 1:
            raise node.refusal("expected columns of a matrix, one beside the other")
        width = self._shape(node.inputs[0], node)[1]
        bounds = range(width)[int(first[0]) : int(last[0])]
        self.layers.append(kinds.Columns(node.name, node.inputs[:1], node.output, bounds.start, bounds.stop))

    def _function(self, node: _Node) -> None:
        names = (self._matrix(node.inputs[0], node),)
        self.layers.append(kinds.Map(node.name, names, node.output, FUNCTIONS[node.kind]))

    def _operation(self, node: _Node) -> None:
        if node.kind == "Add" and self._rank(node.output) == 4 and not set(node.inputs) & self.constants.keys():
            if self._shape(node.inputs[0], node) != self._shape(node.inputs[1], node):
                raise node.refusal("it adds features of different shapes")
            names = (self._feature(node.inputs[0]), self._feature(node.inputs[1]))
            self.layers.append(kinds.Sum(node.name, names, node.output))
            return
        names = (self._matrix(node.inputs[0], node), self._matrix(node.inputs[1], node))
        self.layers.append(kinds.Combine(node.name, names, node.output, OPERATIONS[node.kind]))
