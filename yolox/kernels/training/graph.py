"""The captured graph as blocks: what is always computed together, whatever kernel computes it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from yolox.kernels.training.eligibility import has_hooks
from yolox.kernels.training.norms import IDENTITY, RELU, RELU6, SILU, Activation, NormAct
from yolox.kernels.training.ops import LARGEST_WINDOW

_FUNCTIONS: dict[Any, Activation] = {F.silu: SILU, F.relu: RELU, torch.relu: RELU, F.relu6: RELU6}
_SAME_CHANNELS = (nn.MaxPool2d, nn.AvgPool2d, nn.Upsample, nn.Dropout, nn.Dropout2d, nn.Identity, nn.ReLU, nn.SiLU)
_SAME_CHANNELS_FUNCTIONS = (F.interpolate, F.max_pool2d, F.avg_pool2d, F.dropout, F.silu, F.relu)
_ADDITIONS = (operator.add, operator.iadd, torch.add)
_SHAPE_METHODS = {"size", "dim", "numel", "is_floating_point"}
_SHAPE_ATTRIBUTES = {"shape", "dtype", "device", "ndim"}


class Layer(NamedTuple):
    """A module, and the one call of it in the graph that is meant."""

    node: fx.Node
    name: str
    module: nn.Module


@dataclass(frozen=True, eq=False)
class Block:
    """A convolution, the batch normalisation that alone reads it, and the activation that alone reads that.

    Attributes:
        source: What the first of them reads.
        conv: The convolution; None where the normalisation follows something else.
        norm: The normalisation; None where none follows.
        act: The activation's node; None where the kernels know none there.
        act_function: What it calls.
        activation: What it computes, the identity where there is none.
    """

    source: fx.Node
    conv: Layer | None
    norm: Layer | None
    act: fx.Node | None = None
    act_function: Callable[[Tensor], Tensor] | None = None
    activation: Activation = IDENTITY

    @property
    def nodes(self) -> tuple[fx.Node, ...]:
        """All calls in their order."""
        parts = (self.conv.node if self.conv else None, self.norm.node if self.norm else None, self.act)
        return tuple(node for node in parts if node is not None)

    @property
    def output(self) -> fx.Node:
        """The last call, whose value others read."""
        return self.nodes[-1]

    @property
    def name(self) -> str:
        """Names of convolution and normalisation, the common beginning once."""
        names = [layer.name for layer in (self.conv, self.norm) if layer]
        if len(names) == 2 and names[0].rpartition(".")[0] == names[1].rpartition(".")[0]:
            names[1] = names[1].rpartition(".")[2]
        return " + ".join(names)

    @property
    def out_channels(self) -> int:
        """Channels of the value."""
        if self.conv is not None:
            return self.convolution().out_channels
        return self.norm_act().layer.num_features

    def convolution(self) -> nn.Conv2d:
        """Return the convolution of a block that has one."""
        assert self.conv is not None
        assert isinstance(self.conv.module, nn.Conv2d)
        return self.conv.module

    def norm_act(self) -> NormAct:
        """Return normalisation and activation of a block that has them."""
        assert self.norm is not None
        return NormAct(self.norm.module, self.activation)  # type: ignore[arg-type]

    def plain(self, x: Tensor, *, after_conv: bool = False) -> Tensor:
        """Compute the block with PyTorch's layers, or what comes after its convolution."""
        for layer in (None if after_conv else self.conv, self.norm):
            x = x if layer is None else layer.module(x)
        return x if self.act_function is None else self.act_function(x)


def find_blocks(graph: fx.Graph, modules: dict[str, nn.Module]) -> dict[fx.Node, Block]:
    """Return every convolution and batch normalisation of the graph in a block, by the block's first call."""
    blocks: dict[fx.Node, Block] = {}
    for node in graph.nodes:
        layer = _layer(node, modules)
        if layer is None or not isinstance(layer.module, nn.Conv2d | _BatchNorm):
            continue
        if isinstance(layer.module, nn.Conv2d):
            blocks[node] = Block(node.args[0], layer, None)
            continue
        before = node.args[0]
        alone = before in blocks and blocks[before].norm is None and len(before.users) == 1
        conv = blocks[before].conv if alone else None
        first = conv.node if conv else node
        source: Any = first.args[0]
        blocks[first] = Block(source, conv, layer, *_activation_after(node, modules))
    return blocks


def _layer(node: fx.Node, modules: dict[str, nn.Module]) -> Layer | None:
    if node.op != "call_module" or node.kwargs or len(node.args) != 1 or not isinstance(node.args[0], fx.Node):
        return None
    return Layer(node, str(node.target), modules[str(node.target)])


def _activation_after(
    node: fx.Node, modules: dict[str, nn.Module]
) -> tuple[fx.Node | None, Callable[[Tensor], Tensor] | None, Activation]:
    """Return the activation that is the only reader of ``node``, if there is one that the kernels know."""
    nothing = (None, None, IDENTITY)
    if len(node.users) != 1:
        return nothing
    (reader,) = node.users
    if not reader.args or reader.args[0] is not node:
        return nothing
    layer = _layer(reader, modules)
    if layer is not None:
        found = None if has_hooks(layer.module) else _activation_of(layer.module)
        return nothing if found is None else (reader, layer.module, found)
    if reader.op == "call_function" and reader.target in _FUNCTIONS:
        activation = _FUNCTIONS[reader.target]
        return reader, {SILU: F.silu, RELU: F.relu, RELU6: F.relu6}[activation], activation
    if reader.op == "call_method" and reader.target in {"relu", "relu_"}:
        return reader, F.relu, RELU
    return nothing


def _activation_of(module: nn.Module) -> Activation | None:
    if type(module) is nn.LeakyReLU and 0 <= module.negative_slope <= 1:
        return Activation(False, module.negative_slope)
    return {nn.SiLU: SILU, nn.ReLU: RELU, nn.ReLU6: RELU6, nn.Identity: IDENTITY}.get(type(module))


def channels_of(node: Any, blocks: dict[fx.Node, Block], modules: dict[str, nn.Module]) -> int | None:
    """Return the number of channels of a value, where the graph tells.

    Args:
        node: Any value.
        blocks: By their outputs.
        modules: By their names.
    """
    while isinstance(node, fx.Node):
        if node in blocks:
            return blocks[node].out_channels
        parts = concatenated(node)
        if parts:
            counts = [channels_of(part, blocks, modules) for part in parts]
            return None if None in counts else sum(count or 0 for count in counts)
        layer = _layer(node, modules)
        same = layer is not None and isinstance(layer.module, _SAME_CHANNELS)
        if not (same or node.target in _SAME_CHANNELS_FUNCTIONS or addends(node)):
            return None
        node = node.args[0]
    return None


def concatenated(node: fx.Node) -> tuple[fx.Node, ...]:
    """Return what ``node`` puts side by side along the channels; nothing where it is something else."""
    if node.op != "call_function" or node.target not in {torch.cat, torch.concat} or not node.args:
        return ()
    axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
    parts = node.args[0]
    if axis not in {1, -3} or not isinstance(parts, list | tuple):
        return ()
    return tuple(parts) if all(isinstance(part, fx.Node) for part in parts) else ()  # type: ignore[arg-type]


def pooling_window(node: fx.Node, modules: dict[str, nn.Module]) -> int | None:
    """Return the side of the windows where ``node`` takes the maximum around each pixel; None where it does not."""
    given: tuple[Any, ...] = ()
    layer = _layer(node, modules)
    if layer is not None and type(layer.module) is nn.MaxPool2d and not has_hooks(layer.module):
        pool = layer.module
        given = (pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode, pool.return_indices)
    elif node.op == "call_function" and node.target is F.max_pool2d and len(node.args) >= 2:
        names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
        values: dict[str, Any] = dict(zip(names, (None, None, 0, 1, False, False), strict=True))
        values |= dict(zip(names, node.args[1:], strict=False)) | node.kwargs
        given = tuple(values.values())
    side = given[0] if given else None
    if not isinstance(side, int) or given != (side, 1, side // 2, 1, False, False):
        return None
    return side if side % 2 and side <= LARGEST_WINDOW else None


def addends(node: fx.Node) -> tuple[fx.Node, ...]:
    """Return the two values that ``node`` adds up; nothing where it is something else."""
    method = node.op == "call_method" and node.target in {"add", "add_"}
    if not (method or (node.op == "call_function" and node.target in _ADDITIONS)) or node.kwargs or len(node.args) != 2:
        return ()
    return tuple(node.args) if all(isinstance(part, fx.Node) for part in node.args) else ()  # type: ignore[arg-type]


def reads_only_shape(node: fx.Node) -> bool:
    """Return whether the node asks for size or type of its input and not for values."""
    if node.op == "call_method":
        return node.target in _SHAPE_METHODS
    return node.op == "call_function" and node.target is getattr and node.args[1] in _SHAPE_ATTRIBUTES


def is_in_place(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Return whether the node may write into its input."""
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False))
    name = str(getattr(node.target, "__name__", ""))
    return (
        any(item is True for item in node.args[1:])
        or bool(node.kwargs.get("inplace"))
        or name.endswith("_")
        or name.startswith("iadd")
    )


def readers_of_values(node: fx.Node) -> Iterator[fx.Node]:
    """Yield the nodes that read more of ``node`` than its shape."""
    return (user for user in node.users if not reads_only_shape(user))
