"""Non-maximum suppression inside an ONNX graph that gives boxes and scores, by the same rules as outside of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

DETECTIONS = "detections"
"""Name of the only output of a graph with suppression."""

DETECTIONS_LAYOUT = "detections: [N, 7] = image of the batch, left, top, right, bottom in pixels, class, score"
"""What that output holds: N is the number of detections of the whole batch."""

SUPPRESSION_FROM = 11
"""First opset that has the operators."""


@dataclass(frozen=True)
class Suppression:
    """Which boxes are detections.

    Args:
        confidence: Lowest score to keep.
        nms_iou: IoU with a better box of the same class above which a box is dropped.
        multi_label: Let a box be a detection of each of its classes whose score is high enough, not of its best alone.
    """

    confidence: float
    nms_iou: float
    multi_label: bool = False


def add_nms(path: Path, rules: Suppression, num_classes: int) -> None:
    """Replace the outputs of the ONNX file ``path``, boxes ``[B, A, 4]`` and scores ``[B, A, C]``, by detections.

    The output is ``[N, 7]`` float32, see `DETECTIONS_LAYOUT`; within a class of an image the best score comes first.
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
