"""From a network with float weights and observed ranges to an int8 program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from yolox.kernels.int8.builder import build_program
from yolox.kernels.int8.float_ir import Layer, Network
from yolox.kernels.int8.int8_ir import Activation, Program
from yolox.kernels.int8.ops.concat import Stack
from yolox.kernels.int8.ops.convolution import Convolution
from yolox.kernels.int8.ops.matrices import Function, Map
from yolox.kernels.int8.ops.rows import Rows
from yolox.kernels.int8.quantize import RangeObserver, quantization_parameters, quantize_weights


def convert(
    network: Network,
    observers: Mapping[str, RangeObserver],
    shapes: Mapping[str, tuple[int, ...]],
    quantile: float,
    *,
    in_pairs: bool,
) -> Program:
    """Return the int8 program of a network.

    Args:
        network: The layers.
        observers: What ``observe`` found, by the name of the value.
        shapes: Shape of every value, without the batch axis.
        quantile: See ``RangeObserver.parameters``.
        in_pairs: See ``quantize_weights``.
    """
    parameters = quantization_parameters(network, observers, quantile)
    weights = {
        layer.output: quantize_weights(
            layer, parameters[layer.inputs[0]], observers[layer.inputs[0]], in_pairs=in_pairs
        )
        for layer in network.layers
        if isinstance(layer, Convolution)
    }
    return build_program(network, parameters, weights, shapes)


def with_early_sigmoids(network: Network) -> Network:
    """Return the network with the sigmoid of a matrix moved into the convolutions that write it, where they all can."""
    writers = {layer.output: layer for layer in network.layers}
    readers = network.readers()

    def sources(name: str) -> list[Convolution] | None:
        """Return the convolutions that all numbers of a value come from, or ``None`` if others need these numbers."""
        layer = writers.get(name)
        if layer is None or readers[name] != 1:
            return None
        if isinstance(layer, Convolution):
            return [layer] if layer.activation is Activation.NONE else None
        if not isinstance(layer, Rows | Stack):
            return None
        found = [sources(part) for part in layer.inputs]
        return None if None in found else [source for part in found for source in part or ()]

    changed: dict[str, Layer] = {}
    renamed: dict[str, str] = {}
    for layer in network.layers:
        if isinstance(layer, Map) and layer.function is Function.SIGMOID:
            convolutions = sources(layer.inputs[0])
            if convolutions is not None:
                changed |= {one.output: replace(one, activation=Activation.SIGMOID) for one in convolutions}
                renamed[layer.inputs[0]] = layer.output
    kept = [changed.get(layer.output, layer) for layer in network.layers if layer.output not in set(renamed.values())]
    layers = tuple(replace(layer, output=renamed.get(layer.output, layer.output)) for layer in kept)
    return replace(network, layers=layers)
