"""ONNX files out of torch modules, checked against the module that they came from; suppression inside such a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from yolox.errors import YoloxError
from yolox.inference.backends.graph_file import Suppression
from yolox.inference.backends.torch_runner import export_inputs, export_program
from yolox.inference.convert.quiet import quiet

OPSET = 18
"""Understood by every release of ONNX Runtime and OpenVINO of the last three years."""

FOLDED = 1 << 24
"""Numbers of the largest constants that are computed once and for all."""

TOLERANCE = 1e-3
"""Largest difference to the module, as a share of the largest output value; fp32 conversions stay far below."""
DETECTIONS = "detections"
"""Name of the only output of a graph with suppression."""

SUPPRESSION_FROM = 11
"""First opset that has the operators."""


def input_names(count: int) -> list[str]:
    """Return the names of the inputs of an exported file."""
    return [f"input_{index}" for index in range(count)]


def output_names(count: int) -> list[str]:
    """Return the names of the outputs of an exported file."""
    return [f"output_{index}" for index in range(count)]


def export_onnx(model: nn.Module, sample: Sequence[np.ndarray[Any, Any]], path: Path, *, dynamic_batch: bool) -> None:
    """Write ``model`` as an ONNX file; BatchNorm is folded and weights keep the names they have in the module.

    ``torch.export`` does it where it can; a module that it cannot follow is traced instead.

    Args:
        model: Takes positional tensors, returns a flat tuple of tensors; in eval mode.
        sample: Inputs of one batch.
        path: The file to write.
        dynamic_batch: Leave axis 0 of inputs and outputs free.

    Raises:
        YoloxError: When neither way works, with the reason of both.
    """
    with torch.inference_mode():
        count = len(model(*export_inputs(sample, dynamic_batch)))
    reasons = []
    for way in (_export_graph, _export_trace):
        try:
            with quiet(printing=True), torch.no_grad():
                way(model, sample, path, count, dynamic_batch)
            return
        except Exception as error:  # noqa: BLE001 - exporters raise anything; the next way is tried, then all are told
            reasons.append(f"{way.__name__.strip('_')}: {_first_line(error)}")
    raise YoloxError(f"no ONNX export: {'; '.join(reasons)}. Rewrite the operation named there with plain torch ones.")


def check_outputs(model: nn.Module, sample: Sequence[np.ndarray[Any, Any]], outputs: Sequence[Any]) -> None:
    """Prove that ``outputs`` are what ``model`` returns for ``sample``, up to rounding.

    Raises:
        YoloxError: With the index of the output and the difference.
    """
    with torch.inference_mode():
        expected = model(*(torch.from_numpy(np.array(array)) for array in sample))
    for index, (ours, theirs) in enumerate(zip(outputs, expected, strict=True)):
        reference = theirs.detach().numpy()
        if ours.shape != reference.shape:
            raise YoloxError(f"output {index} has shape {ours.shape} after conversion, {reference.shape} before.")
        difference = float(np.abs(ours.astype(np.float64) - reference).max(initial=0.0))
        scale = float(np.abs(reference).max(initial=0.0))
        if not difference <= TOLERANCE * max(scale, 1.0):
            raise YoloxError(
                f"output {index} differs by {difference:.4g} after conversion (largest value {scale:.4g})."
            )


def _export_graph(
    model: nn.Module, sample: Sequence[np.ndarray[Any, Any]], path: Path, num_outputs: int, dynamic_batch: bool
) -> None:
    from onnxscript.optimizer import optimize

    program = export_program(model, sample, dynamic_batch)
    exported = torch.onnx.export(
        program,
        (),
        input_names=input_names(len(sample)),
        output_names=output_names(num_outputs),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert exported is not None
    # PyTorch folds only small constants, which leaves the grid of 80x80 cells to be computed for every batch.
    optimize(exported.model, input_size_limit=FOLDED, output_size_limit=FOLDED)
    exported.save(path, external_data=False)


def _export_trace(
    model: nn.Module, sample: Sequence[np.ndarray[Any, Any]], path: Path, num_outputs: int, dynamic_batch: bool
) -> None:
    inputs = export_inputs(sample, dynamic_batch)
    names = [*input_names(len(inputs)), *output_names(num_outputs)]
    torch.onnx.export(
        model,
        inputs,
        str(path),
        input_names=names[: len(inputs)],
        output_names=names[len(inputs) :],
        dynamic_axes={name: {0: "batch"} for name in names} if dynamic_batch else None,
        opset_version=OPSET,
        dynamo=False,
    )


def add_metadata(path: Path, values: Mapping[str, str]) -> None:
    """Add text by name to an ONNX file that is there."""
    import onnx

    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, dict(values))
    onnx.save(model, str(path))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__} {lines[0] if lines else ''}".strip()


def add_nms(path: Path, rules: Suppression, num_classes: int) -> None:
    """Replace the outputs of the ONNX file ``path``, boxes ``[B, A, 4]`` and scores ``[B, A, C]``, by detections.

    The output is ``[N, 7]`` float32, see `OUTPUT_DESCRIPTIONS`; within a class of an image the best score comes first.
    The graph uses ``NonMaxSuppression`` and needs opset 11 or later.

    Args:
        path: The file; it is rewritten.
        rules: Which boxes are detections.
        num_classes: C.
    """
    import onnx

    model = onnx.load(str(path))
    graph = model.graph
    boxes, scores = (output.name for output in graph.output)
    for name, values in _constants(rules, num_classes).items():
        graph.initializer.append(onnx.numpy_helper.from_array(values, f"nms/{name}"))
    if not rules.multi_label:
        graph.node.extend(_nodes(onnx.helper, _BEST_CLASS, {"scores": scores}))
    given = {"boxes": boxes, "scores": scores if rules.multi_label else "nms/best_scores"}
    graph.node.extend(_nodes(onnx.helper, _SUPPRESSION, given))
    del graph.output[:]
    kind = onnx.TensorProto.FLOAT
    graph.output.append(onnx.helper.make_tensor_value_info(DETECTIONS, kind, ["num_detections", 7]))
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def _constants(rules: Suppression, num_classes: int) -> dict[str, Any]:
    # the operator keeps scores above its threshold, we keep those that reach it
    threshold = np.nextafter(np.float32(rules.confidence), np.float32(0))
    return {
        "confidence": np.array([threshold], np.float32),
        "iou": np.array([rules.nms_iou], np.float32),
        "classes": np.arange(num_classes, dtype=np.int64),
        "nothing": np.array(0, np.float32),
        "zero": np.array([0], np.int64),
        "one": np.array([1], np.int64),
        "image_and_anchor": np.array([0, 2], np.int64),
        "column": np.array([-1, 1], np.int64),
    }


# operator, inputs, output, attributes; names without a counterpart in the graph begin with nms/
_BEST_CLASS: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("ArgMax", "scores", "best_class", {"axis": 2, "keepdims": 1}),
    ("Equal", "best_class classes", "is_best", {}),
    ("Where", "is_best scores nothing", "best_scores", {}),
)
_SUPPRESSION: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("Transpose", "scores", "scores_by_class", {"perm": [0, 2, 1]}),
    ("Shape", "boxes", "shape", {}),
    ("Gather", "shape one", "num_anchors", {}),  # no limit on the boxes of a class
    ("NonMaxSuppression", "boxes scores_by_class num_anchors iou confidence", "selected", {}),  # image, class, anchor
    ("Gather", "selected image_and_anchor", "place", {"axis": 1}),
    ("GatherND", "boxes place", "kept_boxes", {}),
    ("GatherND", "scores_by_class selected", "flat_scores", {}),
    ("Reshape", "flat_scores column", "kept_scores", {}),
    ("Gather", "selected zero", "image_index", {"axis": 1}),
    ("Gather", "selected one", "class_index", {"axis": 1}),
    ("Cast", "image_index", "image", {"to": 1}),
    ("Cast", "class_index", "class", {"to": 1}),
    ("Concat", "image kept_boxes class kept_scores", DETECTIONS, {"axis": 1}),
)


def _nodes(helper: Any, steps: tuple[tuple[str, str, str, dict[str, Any]], ...], given: dict[str, str]) -> list[Any]:
    def full(name: str) -> str:
        return given.get(name, name if name == DETECTIONS else f"nms/{name}")

    return [
        helper.make_node(operator, [full(name) for name in inputs.split()], [full(output)], f"nms/{output}", **settings)
        for operator, inputs, output, settings in steps
    ]
