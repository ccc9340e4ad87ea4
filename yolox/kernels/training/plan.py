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
        as_given = any(x.ndim == 4 and not x.is_contiguous(memory_format=torch.channels_last) for x in tensors)
        values: list[Any] = [None] * len(self._places)
        for place, tensor in zip(self._inputs, tensors, strict=True):
            values[place] = tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
        for run, inputs, outputs, dying in self._program:
            for place, value in zip(outputs, run(*[values[i] for i in inputs]), strict=True):
                values[place] = value
            for place in dying:
                values[place] = None
        return self._result(self._output, values, as_given)

    def _result(self, output: Any, values: list[Any], as_given: bool) -> Any:
        if isinstance(output, fx.Node):
            value = materialize(values[self._places[output]])
            return value.contiguous() if as_given and isinstance(value, Tensor) and value.ndim == 4 else value
        if isinstance(output, tuple):
            return tuple(self._result(item, values, as_given) for item in output)
        if isinstance(output, list):
            return [self._result(item, values, as_given) for item in output]
        if isinstance(output, dict):
            return {key: self._result(item, values, as_given) for key, item in output.items()}
        return output


def _place(places: dict[Hashable, int], name: Hashable) -> int:
    return places.setdefault(name, len(places))
