"""An exported ONNX file as layers: which operators there are, which of them belong together, and what cannot be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yolox.kernels.int8.float_ir import Network
from yolox.kernels.int8.onnx_graph import Graph, Node, OperatorReader
from yolox.kernels.int8.ops.affine import read_activation, read_batch_normalization
from yolox.kernels.int8.ops.concat import read_concat
from yolox.kernels.int8.ops.convolution import read_convolution, read_gemm, read_matmul, read_pad
from yolox.kernels.int8.ops.matrices import read_arithmetic, read_function
from yolox.kernels.int8.ops.pooling import read_average, read_global_average, read_max, read_mean
from yolox.kernels.int8.ops.resize import read_resize
from yolox.kernels.int8.ops.rows import Rows, read_identity, read_reshape, read_slice, read_transpose
from yolox.kernels.int8.ops.transposed import read_transposed_convolution

SIZE_READERS = ("Resize", "Reshape")
"""Operators of whose inputs the first alone is a value; the others are sizes, which the result's shape tells, too."""

OPERATORS: Mapping[str, OperatorReader] = {
    "Conv": read_convolution,
    "ConvTranspose": read_transposed_convolution,
    "Gemm": read_gemm,
    "MatMul": read_matmul,
    "BatchNormalization": read_batch_normalization,
    "MaxPool": read_max,
    "AveragePool": read_average,
    "GlobalAveragePool": read_global_average,
    "ReduceMean": read_mean,
    "Resize": read_resize,
    "Concat": read_concat,
    "Pad": read_pad,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), read_reshape),
    "Transpose": read_transpose,
    "Slice": read_slice,
    **dict.fromkeys(("Identity", "Dropout"), read_identity),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), read_arithmetic),
    **dict.fromkeys(("Sigmoid", "Exp"), read_function),
    **dict.fromkeys(("Relu", "LeakyRelu", "Clip", "HardSwish", "HardSigmoid", "Tanh", "Gelu"), read_activation),
}
"""What reads each operator of ONNX that the engine computes."""


def read_file(path: Path) -> Any:
    """Return an ``onnx.ModelProto`` that keeps to the rules of the format, with the shapes of its values.

    Raises:
        ValueError: When the file is absent, damaged or no model.
    """
    import onnx
    from google.protobuf.message import DecodeError

    malformed = (DecodeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError)
    try:
        model = onnx.load_model_from_string(path.read_bytes())  # numbers in other files are not read
        onnx.checker.check_model(model)
        return onnx.shape_inference.infer_shapes(model)
    except (*malformed, OSError) as error:
        raise ValueError(str(error)) from error


def read_model(model: Any) -> Network:
    """Return the network of an ``onnx.ModelProto``.

    Raises:
        UnsupportedOperatorError: When it holds something that no layer computes, with the operator's name.
    """
    graph = _graph(model)
    for node in graph.nodes:
        if node.output in graph.absorbed:
            continue
        if node.kind not in OPERATORS:
            raise node.refusal("this operator is not known, or not at this place")
        OPERATORS[node.kind](graph, node)
    names, shapes = zip(*(_output(graph, name) for name in graph.outputs), strict=True)
    inputs = tuple(name for name in graph.inputs if any(name in layer.inputs for layer in graph.layers))
    return Network(inputs, tuple(graph.layers), names, graph.matrices, shapes)


def _graph(model: Any) -> Graph:
    import onnx

    graph = onnx.shape_inference.infer_shapes(model).graph
    constants = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
    nodes = []
    for item in graph.node:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in item.attribute}
        if item.op_type == "Constant" and "value" in attributes:
            constants[item.output[0]] = onnx.numpy_helper.to_array(attributes["value"])
        else:
            nodes.append(Node(item.op_type, item.name, tuple(item.input), item.output[0], attributes))
    shapes = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    inputs = tuple(value.name for value in graph.input if value.name not in constants)
    outputs = tuple(value.name for value in graph.output)
    return Graph(_needed(nodes, outputs), constants, shapes, inputs, outputs)


def _needed(nodes: list[Node], outputs: tuple[str, ...]) -> list[Node]:
    """Return the operators that compute values: not those of sizes, which the shapes of the results tell as well."""
    names, found = set(outputs), []
    for node in reversed(nodes):
        if node.output in names:
            found.append(node)
            names.update(node.inputs[:1] if node.kind in SIZE_READERS else node.inputs)
    return found[::-1]


def _output(graph: Graph, name: str) -> tuple[str, tuple[int, ...]]:
    """Return the matrix that is returned as an output, and the output's shape; features become rows of one."""
    whole = Node("output", name, (name,), name, {})
    shape = graph.shape(name, whole)
    if graph.rank(name) == 3:
        return graph.matrix(name, whole), shape
    rows = f"{name}_rows"
    if graph.writer(rows) is None:
        graph.layers.append(Rows(name, (graph.feature(name, whole),), rows))
    return rows, shape
