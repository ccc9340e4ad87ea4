"""A plan: the steps that compute a captured module, and what happens to each value on the way."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from yolox.kernels.training.capture import Capture
from yolox.kernels.training.choose import Precision, Row, choose
from yolox.kernels.training.deferred import materialize


class Plan:
    """Computes what the forward method of a module does in training, for one precision and one kind of arguments.

    Args:
        capture: The forward method.
        precision: What convolutions compute in.
    """

    def __init__(self, capture: Capture, precision: Precision) -> None:
        self.capture = capture
        steps, self.rows = choose(capture, precision)
        nodes = list(capture.graph.nodes)
        places: dict[Hashable, int] = {}
        self._inputs = [_place(places, node) for node in nodes if node.op == "placeholder"]
        self._outputs = list(nodes[-1].all_input_nodes)
        self._output = nodes[-1].args[0]
        last = {name: number for number, step in enumerate(steps) for name in (*step.inputs, *step.outputs)}
        for node in nodes[-1].all_input_nodes:
            last.pop(node, None)
        dying: list[list[int]] = [[] for _ in steps]
        program = []
        for number, step in enumerate(steps):
            inputs = [places[name] for name in step.inputs]
            outputs = [_place(places, name) for name in step.outputs]
            program.append((step.run, inputs, outputs, dying[number]))
        for name, number in last.items():
            dying[number].append(places[name])
        self._program, self._places = program, places

    rows: Sequence[Row]
    """The kernel chosen for each layer, one line each."""

    def run(self, tensors: Sequence[Tensor]) -> Any:
        """Return what the forward method returns.

        Args:
            tensors: Those among its arguments, depth first.
        """
        return self.result(self.compute(tensors))

    def compute(self, tensors: Sequence[Tensor]) -> list[Any]:
        """Return the values in what the forward method returns, without what is around them."""
        as_given = any(x.ndim == 4 and not x.is_contiguous(memory_format=torch.channels_last) for x in tensors)
        values: list[Any] = [None] * len(self._places)
        for place, tensor in zip(self._inputs, tensors, strict=True):
            values[place] = tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
        for run, inputs, outputs, dying in self._program:
            for place, value in zip(outputs, run(*[values[i] for i in inputs]), strict=True):
                values[place] = value
            for place in dying:
                values[place] = None
        found = [materialize(values[self._places[node]]) for node in self._outputs]
        return [x.contiguous() if as_given and isinstance(x, Tensor) and x.ndim == 4 else x for x in found]

    def result(self, values: Sequence[Any]) -> Any:
        """Return what the forward method returns, with those values in it."""
        return _rebuilt(self._output, dict(zip(self._outputs, values, strict=True)))


def _rebuilt(output: Any, values: dict[fx.Node, Any]) -> Any:
    if isinstance(output, fx.Node):
        return values[output]
    if isinstance(output, tuple):
        return tuple(_rebuilt(item, values) for item in output)
    if isinstance(output, list):
        return [_rebuilt(item, values) for item in output]
    if isinstance(output, dict):
        return {key: _rebuilt(item, values) for key, item in output.items()}
    return output


def _place(places: dict[Hashable, int], name: Hashable) -> int:
    return places.setdefault(name, len(places))
