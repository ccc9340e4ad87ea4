"""int8 for OpenVINO by NNCF: the inputs and weights of convolutions and products, nothing in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from yolox.inference.backends.base import Arrays, PrepareContext
from yolox.inference.convert.quantizers.mixed_precision import Layer, search_mixed_precision
from yolox.inference.convert.quantizers.ranges import relative_noise
from yolox.inference.convert.quiet import quiet

HEAVY = ("Convolution", "GroupConvolution", "MatMul", "ConvolutionBackpropData", "GroupConvolutionBackpropData")
CALIBRATION_ROWS = 128
MEASURED_ROWS = 4


def quantize_openvino(graph: Any, context: PrepareContext, build: Callable[[Any], Callable[..., Arrays]]) -> Any:
    """Return a quantized copy of an ``openvino.Model``.

    Activations between the layers (SiLU, sums, concatenations, the decoding of boxes) stay as they are: quantizing them
    costs most of the accuracy and saves little time.

    Args:
        graph: The float model.
        context: Calibration data and the bound on accuracy.
        build: Gives a runnable for a quantized model.

    Raises:
        UsageError: Without calibration data.
    """
    import nncf

    rows = context.calibration_rows(CALIBRATION_ROWS)
    rows = [tuple(np.repeat(array, context.fixed_batch or 1, axis=0) for array in row) for row in rows]
    kinds = {node.get_type_name() for node in graph.get_ops()}
    light = sorted(kinds - {*HEAVY, "Constant", "Parameter", "Result"})
    dataset = nncf.Dataset([dict(enumerate(row)) for row in rows])

    def quantize(excluded: frozenset[str]) -> Any:
        context.progress(f"quantizing on {len(rows)} rows, {len(excluded)} layers in float")
        scope = nncf.IgnoredScope(names=sorted(excluded), types=light, validate=False)
        with quiet(printing=True):
            return nncf.quantize(
                graph,
                dataset,
                preset=nncf.QuantizationPreset.MIXED,
                target_device=nncf.TargetDevice.CPU,
                subset_size=len(rows),
                ignored_scope=scope,
            )

    return search_mixed_precision(quantize, _measure_layers(graph, rows[:MEASURED_ROWS]), 0, build, context)


def _measure_layers(graph: Any, rows: list[Any]) -> list[Layer]:
    """Run the float model on a few rows and return its layers with what int8 inputs would do to them."""
    from yolox.inference.backends.openvino import openvino  # that file imports this one

    library = openvino()
    probe = graph.clone()
    probe.reshape({index: list(array.shape) for index, array in enumerate(rows[0])})
    heavy = [node for node in probe.get_ops() if node.get_type_name() in HEAVY]
    macs = [multiply_accumulates(node) for node in heavy]
    probe = library.Model([node.input_value(0) for node in heavy], probe.get_parameters(), "probe")
    compiled = library.Core().compile_model(probe, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    noise = np.zeros(len(heavy))
    for row in rows:
        result = compiled(dict(enumerate(row)))
        for index in range(len(heavy)):
            values = result[index]
            noise[index] += relative_noise(values, min(0.0, float(values.min())), float(values.max())) / len(rows)
    return [
        Layer(node.get_friendly_name(), count, float(damage))
        for node, count, damage in zip(heavy, macs, noise, strict=True)
    ]


def multiply_accumulates(node: Any) -> int:
    """Return the products that one OpenVINO layer of static shapes sums up."""
    kind = node.get_type_name()
    data, weights, result = (list(port.get_shape()) for port in (node.input(0), node.input(1), node.output(0)))
    if kind == "MatMul":
        return int(np.prod(result) * (data[-2] if node.get_attributes().get("transpose_a") else data[-1]))
    per_value = int(np.prod(weights[2:] if kind.startswith("Group") else weights[1:]))
    return int(np.prod(data if kind.endswith("BackpropData") else result) * per_value)
