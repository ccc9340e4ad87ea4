"""int8 for ONNX Runtime by its own quantizers, told which layers, which ranges, and a scale for each output channel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from yolox.inference.backends.base import Arrays, PrepareContext
from yolox.inference.convert.quantizers.mixed_precision import Layer, search_mixed_precision
from yolox.inference.convert.quantizers.ranges import RangeFinder, relative_noise
from yolox.inference.convert.quiet import quiet
from yolox.kernels.int8.packing import sums_may_overflow, weight_bounds

CALIBRATION_ROWS = 64
MEASURED_ROWS = 4
HEAVY = ("Conv", "MatMul", "Gemm")


@dataclass
class _Facts:
    """What calibration learned of a layer."""

    node: Any
    macs: int
    depthwise: bool
    noise: float = 0.0


@dataclass
class _Calibration:
    """What calibration learned of a model."""

    layers: list[_Facts] = field(default_factory=list)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)


def quantize_onnx(
    path: Path, kind: str, context: PrepareContext, build: Callable[[bytes], Callable[..., Arrays]]
) -> bytes:
    """Return the quantized model, serialized.

    Only convolutions and products are quantized, the depthwise ones and the most sensitive ones excepted.

    Args:
        path: The float model.
        kind: ``qlinear``: scales fixed by calibration, int8 in and out (QLinearConv). ``integer``: scales taken from
            each batch, within calibrated limits, float out (ConvInteger).
        context: Calibration data and the bound on accuracy.
        build: Gives a runnable for a quantized model.

    Raises:
        UsageError: Without calibration data.
    """
    import onnx

    rows = context.calibration_rows(CALIBRATION_ROWS)
    rows = [tuple(np.repeat(array, context.fixed_batch or 1, axis=0) for array in row) for row in rows]
    model = onnx.load(str(path))
    context.progress(f"calibrating on {len(rows)} rows")
    facts = _calibrate(model, rows, outputs_too=kind == "qlinear")
    dense = [item for item in facts.layers if not item.depthwise]
    depthwise_macs = sum(item.macs for item in facts.layers if item.depthwise)
    way = _static if kind == "qlinear" else _dynamic

    def quantize(excluded: frozenset[str]) -> bytes:
        context.progress(f"quantizing all but {len(excluded)} sensitive layers")
        chosen = [item.node for item in dense if item.node.name not in excluded]
        with quiet():
            return way(model, chosen, facts.intervals, rows[0], context.work_dir)

    layers = [Layer(item.node.name, item.macs, item.noise) for item in dense]
    return search_mixed_precision(quantize, layers, depthwise_macs, build, context)


def _calibrate(model: Any, rows: list[Arrays], *, outputs_too: bool) -> _Calibration:
    """Run the float model on the rows and learn the ranges and the noise of the layers' inputs (and outputs)."""
    weights = {item.name: item for item in model.graph.initializer}
    heavy = [n for n in model.graph.node if n.op_type in HEAVY and n.input[1] in weights and n.input[0] not in weights]
    silu = _followed_by_silu(model)
    names = list(dict.fromkeys([n.input[0] for n in heavy] + [n.output[0] for n in heavy]))
    finders = {name: RangeFinder() for name in names}
    kept: list[dict[str, Any]] = []
    shapes: dict[str, tuple[int, ...]] = {}
    wanted = set(names if outputs_too else [n.input[0] for n in heavy])
    for number, values in enumerate(_run_with_values(model, names, rows)):
        for name in wanted:
            finders[name].add(values[name])
        shapes = {name: value.shape for name, value in values.items()}
        if number < MEASURED_ROWS:
            kept.append({name: values[name] for name in wanted})
    found = _Calibration(intervals={n: finders[n].interval(silu_follows=n in silu) for n in sorted(wanted)})
    noise = {
        name: float(np.mean([relative_noise(values[name], *interval) for values in kept]))
        for name, interval in found.intervals.items()
    }
    for node in heavy:
        dims = list(weights[node.input[1]].dims)
        result = int(np.prod(shapes[node.output[0]][1:]))
        per_value = int(np.prod(dims[1:])) if node.op_type == "Conv" else shapes[node.input[0]][-1]
        depthwise = node.op_type == "Conv" and dims[1] == 1 and _attribute(node, "group", 1) > 1
        total_noise = noise[node.input[0]] + (noise[node.output[0]] if outputs_too else 0.0)
        found.layers.append(_Facts(node, result * per_value, depthwise, total_noise))
    return found


def _run_with_values(model: Any, names: list[str], rows: Iterable[Arrays]) -> Iterator[dict[str, Any]]:
    """Yield the values of the named tensors for each row."""
    import onnx

    from yolox.inference.backends.onnxruntime import make_session

    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    outputs = {output.name for output in probe.graph.output}
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in outputs)
    session = make_session(probe.SerializeToString(), 0)
    inputs = [port.name for port in session.get_inputs()]
    for row in rows:
        yield dict(zip(names, session.run(names, dict(zip(inputs, row, strict=True))), strict=True))


def _static(
    model: Any, nodes: list[Any], intervals: Mapping[str, tuple[float, float]], row: Arrays, folder: Path
) -> bytes:
    """Quantize inputs and outputs of the nodes with the given ranges."""
    import onnx
    from onnxruntime import quantization

    class OneRow(quantization.CalibrationDataReader):  # type: ignore[misc]
        """Feeds the quantizer's own calibration, whose ranges are all overridden."""

        def __init__(self) -> None:
            names = [port.name for port in model.graph.input]
            self._rows = iter([dict(zip(names, row, strict=True))])

        def get_next(self) -> dict[str, Any] | None:
            return next(self._rows, None)

    used = {name for node in nodes for name in (node.input[0], node.output[0])}
    overrides = {name: [_range(*intervals[name])] for name in used}
    weights = {item.name: item for item in model.graph.initializer}
    for node in nodes:
        if node.op_type == "Conv":
            values = onnx.numpy_helper.to_array(weights[node.input[1]])
            bounds = weight_bounds(values, pairs=sums_may_overflow())
            overrides[node.input[1]] = [{"axis": 0, "symmetric": True, **_range(-b, b)} for b in bounds]
    target = folder / "static.onnx"
    quantization.quantize_static(
        _copy(model),
        str(target),
        OneRow(),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=list(HEAVY),
        nodes_to_quantize=[node.name for node in nodes],
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        calibrate_method=quantization.CalibrationMethod.MinMax,
        extra_options={"TensorQuantOverrides": overrides},
    )
    quantized = onnx.load(str(target))
    return bytes(quantized.SerializeToString())


def _range(low: float, high: float) -> dict[str, Any]:
    return {"rmin": np.float32(low), "rmax": np.float32(high)}


def _dynamic(
    model: Any, nodes: list[Any], intervals: Mapping[str, tuple[float, float]], row: Arrays, folder: Path
) -> bytes:
    """Quantize the nodes with scales of the moment, inputs clipped to the calibrated ranges.

    The quantizer knows one scale for all the weights of a layer. Dividing each output channel by its largest weight
    before, and multiplying its result by it, gives every channel a scale of its own.
    """
    import onnx
    from onnxruntime import quantization

    copied = _copy(model)
    chosen = {node.name for node in nodes}
    weights = {item.name: item for item in copied.graph.initializer}
    clipped: dict[str, str] = {}
    rewritten: list[Any] = []
    for node in copied.graph.node:
        if node.name not in chosen:
            rewritten.append(node)
            continue
        source = node.input[0]
        if source not in clipped:
            clipped[source] = f"{source}_clipped"
            limits = [f"{source}_low", f"{source}_high"]
            for name, bound in zip(limits, intervals[source], strict=True):
                copied.graph.initializer.append(onnx.numpy_helper.from_array(np.array(bound, np.float32), name))
            rewritten.append(onnx.helper.make_node("Clip", [source, *limits], [clipped[source]], f"{source}_clip"))
        node.input[0] = clipped[source]
        rewritten.append(node)
        if node.op_type == "Conv":
            rewritten.extend(_equalize_(copied, node, weights))
    del copied.graph.node[:]
    copied.graph.node.extend(rewritten)
    del copied.graph.value_info[:]  # the quantizer transposes weights and would trip over the old shapes
    target = folder / "dynamic.onnx"
    quantization.quantize_dynamic(
        copied,
        str(target),
        op_types_to_quantize=["Conv", "MatMul"],
        nodes_to_quantize=sorted(chosen),
        weight_type=quantization.QuantType.QUInt8,
    )
    quantized = onnx.load(str(target))
    return bytes(quantized.SerializeToString())


def _equalize_(model: Any, node: Any, weights: dict[str, Any]) -> list[Any]:
    """Give a convolution weights of equal size in all output channels; return the nodes that undo it behind."""
    import onnx

    values = onnx.numpy_helper.to_array(weights[node.input[1]])
    axes = tuple(range(1, values.ndim))
    scale = np.maximum(np.abs(values).max(axis=axes), 1e-12).astype(np.float32)
    shape = (-1, *(1,) * (values.ndim - 1))
    name = f"{node.name}_equal"
    constants = {f"{name}_weight": values / scale.reshape(shape)}
    constants[f"{name}_scale"] = scale.reshape(1, -1, *(1,) * (values.ndim - 2))
    result, bias = node.output[0], node.input[2] if len(node.input) > 2 else ""
    node.input[1] = f"{name}_weight"
    node.output[0] = f"{name}_raw"
    scaled = f"{name}_scaled" if bias else result
    after = [onnx.helper.make_node("Mul", [f"{name}_raw", f"{name}_scale"], [scaled], f"{name}_mul")]
    if bias:
        constants[f"{name}_bias"] = onnx.numpy_helper.to_array(weights[bias]).reshape(1, -1, *(1,) * (values.ndim - 2))
        after.append(onnx.helper.make_node("Add", [scaled, f"{name}_bias"], [result], f"{name}_add"))
        del node.input[2:]
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, key) for key, value in constants.items())
    return after


def _followed_by_silu(model: Any) -> set[str]:
    """Return the tensors that are used by x * sigmoid(x) and by nothing else."""
    users: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    found = set()
    for name, nodes in users.items():
        sigmoids = [node for node in nodes if node.op_type == "Sigmoid"]
        products = [node for node in nodes if node.op_type == "Mul"]
        if len(nodes) == 2 and sigmoids and products and set(products[0].input) == {name, sigmoids[0].output[0]}:
            found.add(name)
    return found


def _attribute(node: Any, name: str, default: int) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), default)


def _copy(model: Any) -> Any:
    import onnx

    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied
