"""Turn a quantized graph into one that computes in int8 without a compiler, for TorchScript.

A converted PT2E graph simulates int8: quantize, dequantize, convolve in float. Here each such convolution becomes
oneDNN's int8 convolution with its activation fused in; what feeds only int8 convolutions stays uint8 between them.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

__all__ = ["lower_int8_", "silence_quantize_warning"]

_ATEN = torch.ops.aten
# The pre-packing op and this list type cannot be traced, but TorchScript's own representation can hold them.
_CONVOLUTION = """
graph(%x : Tensor, %x_scale : float, %x_zero : int, %weight : Tensor, %w_scale : Tensor, %w_zero : Tensor,
      %bias : Tensor?, %stride : int[], %padding : int[], %dilation : int[], %groups : int,
      %y_scale : float, %y_zero : int, %dtype : int, %activation : str):
  %none : NoneType = prim::Constant()
  %packed : Tensor = onednn::qconv_prepack(
      %weight, %w_scale, %x_scale, %x_zero, %stride, %padding, %dilation, %groups, %none)
  %scalars : Scalar?[] = prim::ListConstruct()
  %algorithm : str = prim::Constant[value=""]()
  %y : Tensor = onednn::qconv2d_pointwise(%x, %x_scale, %x_zero, %packed, %w_scale, %w_zero, %bias, %stride, %padding,
      %dilation, %groups, %y_scale, %y_zero, %dtype, %activation, %scalars, %algorithm)
  return (%y)
"""
_ACTIVATIONS = {_ATEN.silu.default: "swish", _ATEN.relu.default: "relu", _ATEN.silu_.default: "swish"}


def lower_int8_(module: GraphModule) -> GraphModule:
    """Rewrite ``module``, a converted PT2E graph, in place and return it; its outputs stay the same up to rounding."""
    graph = module.graph
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target in (_ATEN.conv2d.default, _ATEN.convolution.default):
            _lower_convolution_(module, node)
    for node in list(graph.nodes):
        name = str(node.target)
        if node.op == "call_module" and name == "_guards_fn" and not node.users:
            graph.erase_node(node)  # torch.export's checks of the input shape cannot be traced
        if node.op != "call_function" or "quantized_decomposed" not in name:
            continue
        if "dequantize_per_channel" in name:
            _fold_weight_(module, node)
        elif "dequantize_per_tensor" in name:
            _replace_(graph, node, _dequantize, (node.args[0], node.args[1], node.args[2]))
        elif "quantize_per_tensor" in name:
            _replace_(graph, node, _quantize, (node.args[0], node.args[1], node.args[2]))
    graph.eliminate_dead_code()
    graph.lint()
    module.recompile()
    return module


def silence_quantize_warning() -> None:
    """Let PyTorch say once, unheard, that ``quantize_per_tensor`` will go: it says it once in a process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.quantize_per_tensor(torch.zeros(1), 1.0, 0, torch.quint8)


def _quantize(x: Tensor, scale: float, zero_point: int) -> Tensor:
    return torch.quantize_per_tensor(x, scale, zero_point, torch.quint8).int_repr()


def _dequantize(x: Tensor, scale: float, zero_point: int) -> Tensor:
    return (x.to(torch.float32) - zero_point) * scale


@cache
def _convolution() -> Callable[..., Tensor]:
    function: Callable[..., Tensor] = torch._C._create_function_from_graph(
        "int8_convolution", torch._C.parse_ir(_CONVOLUTION)
    )
    return function


def _convolve(*arguments: Any) -> Tensor:
    return _convolution()(*arguments)


def _lower_convolution_(module: GraphModule, node: Node) -> None:
    source, weight = node.args[0], node.args[1]
    if not (_is(source, "dequantize_per_tensor") and _is(weight, "dequantize_per_channel")):
        return
    assert isinstance(source, Node)
    assert isinstance(weight, Node)
    if _is_transposed(node) or not _is_uint8(source):
        return
    last, activation = node, "none"
    users = list(node.users)
    if len(users) == 1 and users[0].target in _ACTIVATIONS:
        last, activation = users[0], _ACTIVATIONS[users[0].target]
    requantized = _common_quantize(last)
    out_scale, out_zero = (requantized[0].args[1], requantized[0].args[2]) if requantized else (1.0, 0)
    stride, padding, dilation, groups = _geometry(node)
    bias = node.args[2] if len(node.args) > 2 else None
    with module.graph.inserting_after(last):
        new = module.graph.call_function(
            _convolve,
            (
                *(source.args[0], source.args[1], source.args[2], *weight.args[:3], bias),
                *(stride, padding, dilation, groups, out_scale, out_zero),
                *(torch.uint8 if requantized else torch.float32, activation),
            ),
        )
    if requantized:
        for quantize in requantized:
            quantize.replace_all_uses_with(new)
            module.graph.erase_node(quantize)
    else:
        last.replace_all_uses_with(new)
    for old in dict.fromkeys((last, node)):
        module.graph.erase_node(old)


def _is(node: Any, name: str) -> bool:
    return isinstance(node, Node) and f"quantized_decomposed.{name}." in str(node.target)


def _is_uint8(dequantize: Node) -> bool:
    return dequantize.args[3:6] == (0, 255, torch.uint8)


def _is_transposed(node: Node) -> bool:
    return node.target == _ATEN.convolution.default and bool(node.args[6])


def _geometry(node: Node) -> tuple[list[int], list[int], list[int], int]:
    """Return stride, padding, dilation and groups of either spelling of a convolution."""
    arguments: list[Any] = list(node.args[3:])
    if node.target == _ATEN.convolution.default:
        stride, padding, dilation, groups = arguments[0], arguments[1], arguments[2], arguments[5]
    else:
        defaults: list[Any] = [[1, 1], [0, 0], [1, 1], 1]
        stride, padding, dilation, groups = [*arguments, *defaults[len(arguments) :]]

    def pair(value: Any) -> list[int]:
        return [int(value[0]), int(value[-1])] if isinstance(value, list | tuple) else [int(value)] * 2

    return pair(stride), pair(padding), pair(dilation), int(groups)


def _common_quantize(node: Node) -> list[Node]:
    """Return the quantizations of ``node`` if all its users are alike ones, so that it can be made in uint8 at once."""
    users = list(node.users)
    if not users or not all(_is(user, "quantize_per_tensor") for user in users):
        return []
    alike = all(user.args[1:] == users[0].args[1:] for user in users)
    return users if alike and users[0].args[3:6] == (0, 255, torch.uint8) else []


def _fold_weight_(module: GraphModule, node: Node) -> None:
    """Put the float weight of a layer that stays in float where its dequantization stood."""
    quantized, scale, zero_point = (
        operator.attrgetter(str(argument.target))(module) for argument in node.args[:3] if isinstance(argument, Node)
    )
    axis = node.args[3]
    assert isinstance(axis, int)
    shape = [1] * quantized.dim()
    shape[axis] = -1
    value = (quantized.float() - zero_point.reshape(shape)) * scale.reshape(shape)
    name = f"_float_{node.name}"
    module.register_buffer(name, value)
    with module.graph.inserting_before(node):
        new = module.graph.get_attr(name)
    node.replace_all_uses_with(new)
    module.graph.erase_node(node)


def _replace_(graph: Any, node: Node, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    with graph.inserting_before(node):
        new = graph.call_function(function, arguments)
    node.replace_all_uses_with(new)
    graph.erase_node(node)
