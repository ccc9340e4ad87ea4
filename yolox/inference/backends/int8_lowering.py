"""Turn a quantized graph into one that computes in int8 without a compiler, for TorchScript.

A converted PT2E graph simulates int8: quantize, dequantize, convolve in float. Here each such convolution becomes
oneDNN's int8 convolution with its activation fused in; what feeds only int8 convolutions stays uint8 between them.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from yolox.inference.backends.torch_internals import TENSOR_CHECK, torchscript_function

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
_LINEAR = """
graph(%x : Tensor, %x_scale : float, %x_zero : int, %weight : Tensor, %w_scale : Tensor, %w_zero : Tensor,
      %bias : Tensor?, %y_scale : float, %y_zero : int, %dtype : int, %activation : str):
  %none : NoneType = prim::Constant()
  %packed : Tensor = onednn::qlinear_prepack(%weight, %none)
  %scalars : Scalar?[] = prim::ListConstruct()
  %algorithm : str = prim::Constant[value=""]()
  %y : Tensor = onednn::qlinear_pointwise(%x, %x_scale, %x_zero, %packed, %w_scale, %w_zero, %bias,
      %y_scale, %y_zero, %dtype, %activation, %scalars, %algorithm)
  return (%y)
"""
_ACTIVATIONS = {_ATEN.silu.default: "swish", _ATEN.relu.default: "relu", _ATEN.silu_.default: "swish"}


def lower_int8_(module: GraphModule) -> GraphModule:
    """Rewrite ``module``, a converted PT2E graph, in place and return it; its outputs stay the same up to rounding."""
    strip_checks_(module)
    _trace_sizes_(module)
    graph = module.graph
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target in (_ATEN.conv2d.default, _ATEN.convolution.default):
            _lower_convolution_(module, node)
        elif node.op == "call_function" and node.target == _ATEN.linear.default:
            _lower_linear_(module, node)
    for node in list(graph.nodes):
        name = str(node.target)
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


def strip_checks_(module: GraphModule) -> None:
    """Take torch.export's checks of shapes and types out: they can neither be traced nor survive autocast."""
    for node in list(module.graph.nodes):
        guards = node.op == "call_module" and str(node.target) == "_guards_fn"
        if (guards or node.target == TENSOR_CHECK) and not node.users:
            module.graph.erase_node(node)
    module.recompile()


def _trace_sizes_(module: GraphModule) -> None:
    """Spell sizes and shapes as methods: tracing follows those, and fixes what operators are given."""
    spelled: dict[Any, Callable[..., Any]] = {
        _ATEN.sym_size.int: Tensor.size,
        _ATEN.view.default: Tensor.reshape,
        _ATEN.reshape.default: Tensor.reshape,
        _ATEN.expand.default: Tensor.expand,
    }
    for node in module.graph.nodes:
        if node.op == "call_function" and not node.kwargs:
            node.target = spelled.get(node.target, node.target)


def silence_quantize_warning() -> None:
    """Let PyTorch say once, unheard, that ``quantize_per_tensor`` will go: it says it once in a process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.quantize_per_tensor(torch.zeros(1), 1.0, 0, torch.quint8)


def _quantize(x: Tensor, scale: float, zero_point: int) -> Tensor:
    return torch.quantize_per_tensor(x, scale, zero_point, torch.quint8).int_repr()


def _dequantize(x: Tensor, scale: float, zero_point: int) -> Tensor:
    return (x.to(torch.float32) - zero_point) * scale


def _convolve(*arguments: Any) -> Tensor:
    return torchscript_function("int8_convolution", _CONVOLUTION)(*arguments)


def _multiply(*arguments: Any) -> Tensor:
    return torchscript_function("int8_linear", _LINEAR)(*arguments)


def _lower_convolution_(module: GraphModule, node: Node) -> None:
    source, weight = node.args[0], node.args[1]
    if not (_is(source, "dequantize_per_tensor") and _is(weight, "dequantize_per_channel")):
        return
    if not _is_uint8(source) or (node.target == _ATEN.convolution.default and bool(node.args[6])):
        return  # a transposed one has no int8 kernel here
    last, activation = _fused_activation(node)
    requantized = _common_quantize(last)
    arguments = (*_operands(node), *_geometry(node), *_output(requantized), activation)
    _put_(module, node, last, requantized, (_convolve, arguments))


def _lower_linear_(module: GraphModule, node: Node) -> None:
    source, weight = node.args[0], node.args[1]
    if not (_is(source, "dequantize_per_tensor") and _is(weight, "dequantize_per_channel") and _is_uint8(source)):
        return
    arguments = (*_operands(node), *_output([]), "none")
    _put_(module, node, node, [], (_multiply, arguments))


def _put_(
    module: GraphModule,
    node: Node,
    last: Node,
    requantized: list[Node],
    call: tuple[Callable[..., Tensor], tuple[Any, ...]],
) -> None:
    """Put ``call`` in the place of ``node`` up to ``last`` and of the quantizations behind it."""
    with module.graph.inserting_after(last):
        new = module.graph.call_function(*call)
    for old in requantized or [last]:
        old.replace_all_uses_with(new)
    for old in dict.fromkeys((*requantized, last, node)):
        module.graph.erase_node(old)


def _operands(node: Node) -> tuple[Any, ...]:
    """Return quantized input, its scale and zero point, the same of the weight, and the bias."""
    source, weight = node.args[0], node.args[1]
    assert isinstance(source, Node)
    assert isinstance(weight, Node)
    return (*source.args[:3], *weight.args[:3], node.args[2] if len(node.args) > 2 else None)


def _output(requantized: list[Node]) -> tuple[Any, ...]:
    """Return scale, zero point and type of the output."""
    if requantized:
        return (requantized[0].args[1], requantized[0].args[2], torch.uint8)
    return (1.0, 0, torch.float32)


def _fused_activation(node: Node) -> tuple[Node, str]:
    users = list(node.users)
    if len(users) == 1 and users[0].target in _ACTIVATIONS:
        return users[0], _ACTIVATIONS[users[0].target]
    return node, "none"


def _is(node: Any, name: str) -> bool:
    return isinstance(node, Node) and f"quantized_decomposed.{name}." in str(node.target)


def _is_uint8(dequantize: Any) -> bool:
    return bool(dequantize.args[3:6] == (0, 255, torch.uint8))


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
