"""Recognises, by what it computes, code that turns each 2x2 block of pixels into one pixel with all their channels."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

_FUNCTIONS = {
    *(getattr, operator.getitem, operator.floordiv, operator.truediv, operator.mul, operator.sub, operator.add),
    *(torch.cat, torch.concat, torch.permute, torch.reshape, torch.flatten, F.pixel_unshuffle, torch.pixel_unshuffle),
}
_METHODS = {"reshape", "view", "permute", "transpose", "flatten", "unflatten", "contiguous", "size", "float"}
_SIZES = ((2, 6, 4), (1, 4, 8))


def find_space_to_depth(
    node: Any, channels: int, modules: dict[str, nn.Module]
) -> tuple[fx.Node, Callable[[Tensor], Tensor]] | None:
    """Find out whether ``node`` is a space-to-depth rearrangement of a tensor.

    All the code between the two is run on numbers that tell where they come from.

    Args:
        node: What a convolution reads.
        channels: Its channels.
        modules: Parts of the captured module, by name.

    Returns:
        The tensor that is rearranged, and a function that turns a 3x3 weight over blocks into the 6x6 weight over
        pixels of the convolution of stride 2 and padding 2 that computes the same; None where it is something else.
    """
    nodes, sources = _code_before(node, modules)
    if len(sources) != 1 or not nodes or channels % 4:
        return None
    (source,) = sources
    order: list[int] | None = None
    for size in _SIZES:
        found = _order(nodes, source, node, (size[0], channels // 4, *size[1:]), modules)
        if found is None or (order is not None and found != order):
            return None
        order = found
    index = torch.tensor(order)

    def fold(weight: Tensor) -> Tensor:
        num_out, depth, height, width = weight.shape
        blocks = weight.index_select(1, index).reshape(num_out, depth // 4, 2, 2, height, width)
        return blocks.permute(0, 1, 4, 2, 5, 3).reshape(num_out, depth // 4, 2 * height, 2 * width)

    return source, fold


def _code_before(node: Any, modules: dict[str, nn.Module]) -> tuple[list[fx.Node], set[fx.Node]]:
    """Return the nodes that only rearrange, in order, and the nodes that they start from."""
    inner: set[fx.Node] = set()
    sources: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        one = waiting.pop()
        if one in inner or one in sources:
            continue
        if _rearranges(one, modules):
            inner.add(one)
            waiting += one.all_input_nodes
        else:
            sources.add(one)
    return [one for one in (node.graph.nodes if isinstance(node, fx.Node) else ()) if one in inner], sources


def _rearranges(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return type(modules[str(node.target)]) is nn.PixelUnshuffle
    if node.op == "call_method":
        return node.target in _METHODS
    return node.op == "call_function" and node.target in _FUNCTIONS


def _order(
    nodes: list[fx.Node], source: fx.Node, result: fx.Node, shape: tuple[int, ...], modules: dict[str, nn.Module]
) -> list[int] | None:
    """Return for each channel, row and column in a block the channel of the result; None where it is another."""
    numbers = torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)
    values: dict[fx.Node, Any] = {source: numbers}
    try:
        for node in nodes:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            target: Any = modules[str(node.target)] if node.op == "call_module" else node.target
            values[node] = (
                getattr(args[0], target)(*args[1:], **kwargs) if node.op == "call_method" else target(*args, **kwargs)
            )
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):  # nothing for these shapes
        return None
    expected, found = F.pixel_unshuffle(numbers, 2), values[result]
    if not isinstance(found, Tensor) or found.shape != expected.shape:
        return None
    places = {float(found[0, channel, 0, 0]): channel for channel in range(found.shape[1])}
    order = [places.get(float(expected[0, channel, 0, 0]), -1) for channel in range(found.shape[1])]
    return order if -1 not in order and torch.equal(found[:, order], expected) else None
