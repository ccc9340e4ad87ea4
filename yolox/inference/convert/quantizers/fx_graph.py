"""What the quantizers of exported torch graphs share: observers only where they pay, and facts about the layers."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from yolox.inference.backends.base import Array, Arrays, PrepareContext, as_numpy, like_inputs, run_in_chunks
from yolox.inference.backends.int8_lowering import lower_int8_, silence_quantize_warning
from yolox.inference.backends.torch_runner import export_program
from yolox.inference.convert.quantizers.mixed_precision import Layer, search_mixed_precision
from yolox.inference.convert.quantizers.ranges import RangeFinder, relative_noise
from yolox.kernels.int8.packing import sums_may_overflow, weight_bounds

CALIBRATION_ROWS = 64
MEASURED_ROWS = 4
CHUNK = 8
"""Rows at once while calibrating and simulating; memory, not speed, sets it."""

SMALLEST_SCALE = 1e-12

_ATEN = torch.ops.aten
_HEAVY = (
    _ATEN.conv1d.default,
    _ATEN.conv2d.default,
    _ATEN.convolution.default,
    _ATEN.linear.default,
    _ATEN.addmm.default,
)


def export_graph(model: torch.nn.Module, context: PrepareContext) -> GraphModule:
    """Return ``model`` as a graph of aten operators, its batch axis free where the context allows it."""
    graph = export_program(model, context.sample, context.dynamic_batch).module()
    _separate_calls_(graph)
    return graph


def _separate_calls_(graph: GraphModule) -> None:
    """Note each further call of a module as a module of its own.

    Quantizers find patterns such as convolution, addition, ReLU by the names of modules, and refuse a module that has
    several outputs: a ReLU that is used twice, as in each block of a ResNet. ``torch.export`` marks the second call as
    ``name@1`` in the keys of its notes, not in the names.
    """
    for node in graph.graph.nodes:
        stack = node.meta.get("nn_module_stack")
        if stack:
            node.meta["nn_module_stack"] = {
                key: (key, kind) if "@" in key else (name, kind) for key, (name, kind) in stack.items()
            }


def heavy_nodes(graph: GraphModule) -> list[Node]:
    """Return the convolutions and linear layers."""
    return [node for node in graph.graph.nodes if node.op == "call_function" and node.target in _HEAVY]


def quantize_graph(
    prepare: Callable[[GraphModule], GraphModule],
    convert: Callable[[GraphModule], GraphModule],
    model: torch.nn.Module,
    context: PrepareContext,
) -> tuple[GraphModule, float]:
    """Return the quantized graph and the share of its multiply-accumulates that are int8.

    Only inputs and weights of convolutions and linear layers are quantized. Convolutions that read one channel at a
    time stay in float: depthwise ones hold a few percent of the work, and one scale for all their channels costs more
    accuracy than any other layer; of those that read grey images Inductor makes wrong programs where the batch axis
    is free (seen with PyTorch 2.13).

    Args:
        prepare: Puts observers into an exported graph.
        convert: Makes quantize and dequantize operators of calibrated observers.
        model: The module.
        context: Calibration data and the bound on accuracy.

    Raises:
        UsageError: Without calibration data.
    """
    rows = context.calibration_rows(CALIBRATION_ROWS)
    source = export_graph(model, context)
    batch = context.fixed_batch
    context.progress(f"calibrating on {len(rows)} rows")
    intervals = _find_intervals(source, rows, batch)
    layers, float_macs = _measure_layers(source, rows[:MEASURED_ROWS], intervals, batch)

    def quantize(excluded: frozenset[str]) -> GraphModule:
        context.progress(f"quantizing all but {len(excluded)} sensitive layers")
        chosen = {layer.name for layer in layers} - excluded
        prepared = prepare(copy.deepcopy(source))
        nodes = [node for node in heavy_nodes(prepared) if node.name in chosen]
        keep_observers_(prepared, nodes)
        _allow_small_scales_(prepared)
        with torch.no_grad():
            prepared(*next(_pieces(rows, batch or 2, True)))  # the weights' observers see the weights
        _bound_weights_(prepared, nodes)
        _set_ranges_(prepared, nodes, intervals)
        return convert(prepared)

    quantized = search_mixed_precision(quantize, layers, float_macs, lambda graph: _predictor(graph, batch), context)
    return quantized, int8_share(quantized, rows[0], batch)


def keep_observers_(prepared: GraphModule, layers: Collection[Node]) -> None:
    """Remove all observers of a prepared graph but those of the inputs of ``layers``."""
    wanted = set(layers)
    for node in list(prepared.graph.nodes):
        if node.op != "call_module" or not str(node.target).startswith("activation_post_process"):
            continue
        for user in list(node.users):
            if user not in wanted:
                user.replace_input_with(node, node.args[0])
        if not node.users:
            prepared.graph.erase_node(node)
    prepared.graph.lint()
    prepared.recompile()


def fold_weights_(converted: GraphModule) -> GraphModule:
    """Replace float weights and their quantize operators by int8 weights, and return the graph."""
    for number, node in enumerate(list(converted.graph.nodes)):
        if "quantized_decomposed.quantize_per_channel" not in str(node.target) or node.args[0].op != "get_attr":
            continue
        arguments = [
            operator.attrgetter(str(item.target))(converted) if isinstance(item, Node) else item for item in node.args
        ]
        with torch.no_grad():
            converted.register_buffer(f"int8_weight_{number}", node.target(*arguments))
        with converted.graph.inserting_before(node):
            node.replace_all_uses_with(converted.graph.get_attr(f"int8_weight_{number}"))
        converted.graph.erase_node(node)
    converted.graph.eliminate_dead_code()
    converted.recompile()
    return converted


def _allow_small_scales_(prepared: GraphModule) -> None:
    """Lower the observers' smallest scale: it rounds the weights of a first layer that sees 0...255 to zero."""
    for observer in prepared.modules():
        smallest = getattr(observer, "eps", None)
        if isinstance(smallest, Tensor):
            observer.eps = torch.full_like(smallest, SMALLEST_SCALE)


def _bound_weights_(prepared: GraphModule, layers: Collection[Node]) -> None:
    """Give the observers of the layers' weights ranges in which this processor's sums are exact."""
    for node in layers:
        observer_node = node.args[_first_operand(node) + 1]
        if not isinstance(observer_node, Node) or observer_node.op != "call_module":
            continue  # of a kind that this quantizer leaves in float
        source = observer_node.args[0]
        if not isinstance(source, Node) or source.op != "get_attr":
            continue  # weights that are computed
        weight = operator.attrgetter(str(source.target))(prepared).detach().numpy()
        bounds = torch.from_numpy(weight_bounds(weight, pairs=sums_may_overflow()))
        observer: Any = prepared.get_submodule(str(observer_node.target))
        observer.min_val, observer.max_val = -bounds, bounds


def _set_ranges_(prepared: GraphModule, layers: Collection[Node], intervals: Mapping[str, tuple[float, float]]) -> None:
    """Give the observers of the layers' inputs the ranges that were found for them (min-max observers)."""
    for node in layers:
        observer_node = node.args[_first_operand(node)]
        if not isinstance(observer_node, Node) or observer_node.op != "call_module":
            continue  # of a kind that this quantizer leaves in float
        # quantizers let one observer serve the inputs and outputs of concatenations; here each input has its own range
        observer = copy.deepcopy(prepared.get_submodule(str(observer_node.target)))
        name = f"range_of_{node.name}"
        prepared.add_submodule(name, observer)
        observer_node.target = name
        low, high = intervals[node.name]
        observer.min_val = torch.tensor(low)
        observer.max_val = torch.tensor(high)
    prepared.recompile()


def _find_intervals(graph: GraphModule, rows: Sequence[Arrays], batch: int | None) -> dict[str, tuple[float, float]]:
    """Return the best interval of the input of each heavy node, by the node's name."""
    finders: dict[str, RangeFinder] = {node.name: RangeFinder() for node in heavy_nodes(graph)}

    def note(node: Node, data: Tensor) -> None:
        for row in data.numpy():
            finders[node.name].add(row)

    for piece in _pieces(rows, batch or CHUNK, batch is not None):
        _Probe(graph, note).run_quietly(*piece)
    return {name: finder.interval() for name, finder in finders.items()}


def int8_share(graph: GraphModule, row: Arrays, batch: int | None) -> float:
    """Return the share of multiply-accumulates whose inputs and weights are int8 in a converted graph."""
    piece = next(_pieces([row, row], batch or 2, batch is not None))
    probe = _Probe(graph)
    probe.run_quietly(*piece)
    total = sum(probe.macs.values())
    int8 = sum(macs for node, macs in probe.macs.items() if all(_from_int8(node.args[i]) for i in (0, 1)))
    return int8 / total if total else 0.0


def _from_int8(argument: Any) -> bool:
    return isinstance(argument, Node) and "dequantize_per" in str(argument.target)


class _Probe(Interpreter):
    """Runs a graph, counts the multiply-accumulates per row of each heavy node, and shows its input.

    Args:
        graph: What to run.
        note: Called with each heavy node and its input.
    """

    def __init__(self, graph: GraphModule, note: Callable[[Node, Tensor], None] | None = None) -> None:
        super().__init__(graph)
        self.macs: dict[Node, int] = {}
        self.one_channel: set[Node] = set()
        self._heavy = set(heavy_nodes(graph))
        self._note = note

    def run_quietly(self, *inputs: Tensor) -> None:
        """Run without gradients."""
        with torch.no_grad():
            self.run(*inputs)

    def run_node(self, n: Node) -> Any:
        """Run one node and take notes."""
        if n.op == "call_module" and str(n.target) == "_guards_fn":
            return None  # checks of shapes that hold
        result = super().run_node(n)
        if n in self._heavy:
            first = _first_operand(n)
            data, weight = self.env[n.args[first]], self.env[n.args[first + 1]]  # type: ignore[index]
            self.macs[n] = result[0].numel() * (weight.numel() // weight.shape[1 if first else 0])
            if weight.dim() > 2 and weight.shape[1] == 1:  # of each group
                self.one_channel.add(n)
            if self._note is not None:
                self._note(n, data)
        return result


def _first_operand(node: Node) -> int:
    return 1 if node.target is _ATEN.addmm.default else 0


def _measure_layers(
    graph: GraphModule, rows: Sequence[Arrays], intervals: Mapping[str, tuple[float, float]], batch: int | None
) -> tuple[list[Layer], int]:
    """Return the dense layers with what int8 would do to them, and the multiply-accumulates of all others."""
    noise: dict[str, float] = {}

    def note(node: Node, data: Tensor) -> None:
        noise[node.name] = relative_noise(data.numpy(), *intervals[node.name])

    probe = _Probe(graph, note)
    probe.run_quietly(*next(_pieces(rows, batch or len(rows), True)))
    layers = [Layer(n.name, macs, noise[n.name]) for n, macs in probe.macs.items() if n not in probe.one_channel]
    return layers, sum(probe.macs.values()) - sum(layer.macs for layer in layers)


def _predictor(graph: GraphModule, batch: int | None) -> Callable[..., Arrays]:
    """Return a function that runs the quantized graph in int8."""
    lowered = lower_int8_(copy.deepcopy(graph))

    def run(*inputs: Tensor) -> Arrays:
        return tuple(lowered(*inputs))

    def predict(*inputs: Array) -> Arrays:
        tensors = tuple(torch.from_numpy(as_numpy(array)) for array in inputs)
        silence_quantize_warning()
        with torch.no_grad():
            outputs = run_in_chunks(run, tensors, batch or CHUNK, pad=batch is not None)
        return like_inputs([as_numpy(output) for output in outputs], inputs)

    return predict


def _pieces(rows: Sequence[Arrays], size: int, fill: bool) -> Iterator[tuple[Tensor, ...]]:
    """Yield rows joined to pieces of at least two (graphs with a free batch may refuse one), filled up if asked."""
    for start in range(0, len(rows), size):
        piece = list(rows[start : start + size])
        least = size if fill else min(2, size)
        piece += [piece[-1]] * (least - len(piece))
        yield tuple(torch.from_numpy(np.concatenate(arrays)) for arrays in zip(*piece, strict=True))
