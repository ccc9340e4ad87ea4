"""Predictors of ONNX and OpenVINO files: boxes and scores, the one output of official exports, or detections."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolox.cpu.machine import read_machine
from yolox.data.image_ops import FILL
from yolox.errors import ModelFileError
from yolox.inference.artifacts.manifest import MAX_NUMBERS
from yolox.inference.backends.base import as_model_error, filled_up, memory_for
from yolox.inference.backends.graph_file import GraphFile, Suppression
from yolox.prediction.models import Network, Predictor
from yolox.prediction.official_output import boxes_and_scores, class_names_of, input_size_of
from yolox.structures import OUTPUT_DESCRIPTIONS, Size


def predictor_of_graph(path: Path, threads: int | None) -> Predictor:
    """Return the predictor of an ONNX or OpenVINO file.

    Args:
        path: The file.
        threads: Threads of the network; None takes one for each core.

    Raises:
        ModelFileError: When it cannot be read, or is no detector as this package or official YOLOX exports them.
    """
    graph, kind = _read(path, threads or read_machine().num_threads)
    batch, size = _input(graph, path)
    rules = _suppression(graph, path)

    def plain(images: NDArray[np.uint8]) -> tuple[Any, Any]:
        return boxes_and_scores(graph.run(images), size, path, graph.metadata.get("outputs", ""))

    network: Network = plain
    source = f"'{path}': {kind} file"
    if rules is not None:
        network = _of_detections(graph.run, batch, len(class_names_of(graph.metadata, None)))
        source += f", suppression inside (scores from {rules.confidence:g} on, IoU {rules.nms_iou:g})"
    images = np.full((batch or 1, 3, *size), FILL, np.uint8)
    with as_model_error(path, memory_for(path, images.size)):
        _, scores = network(images)
    names = class_names_of(graph.metadata, scores.shape[2])
    return Predictor(network, size, names, source, path.stem, kind.lower(), batch if rules is None else None, rules)


def _read(path: Path, threads: int) -> tuple[GraphFile, str]:
    if path.suffix.lower() == ".xml":
        from yolox.inference.backends.openvino_files import read_ir

        return read_ir(path, threads), "OpenVINO"
    from yolox.inference.backends.onnx_files import read_onnx

    return read_onnx(path, threads), "ONNX"


def _input(graph: GraphFile, path: Path) -> tuple[int | None, Size]:
    """Return the batch, None for any, and the size of the images.

    Raises:
        ModelFileError: When the input is none of images of one size.
    """
    batch, channels, height, width = graph.input_shape if len(graph.input_shape) == 4 else (None, 0, None, None)
    size = input_size_of(graph.metadata) if height is None and width is None else Size(height or 0, width or 0)
    largest = 0 if size is None else (batch or 1) * 3 * size.height * size.width
    if channels != 3 or size is None or not 0 < largest <= MAX_NUMBERS or graph.num_outputs not in (1, 2):
        raise ModelFileError(
            f"'{path}' takes {list(graph.input_shape)} and gives {graph.num_outputs} outputs; expected images "
            "[B, 3, H, W] of a fixed height and width (or of those in its metadata, input_size), and one or two "
            "outputs. Export it with yolox export."
        )
    return batch, size


def _suppression(graph: GraphFile, path: Path) -> Suppression | None:
    """Return the rules of the suppression inside the graph, as its metadata tells them; None where there is none.

    Raises:
        ModelFileError: When they cannot be read.
    """
    if graph.metadata.get("outputs") != OUTPUT_DESCRIPTIONS["detections"]:
        return None
    try:
        rules = json.loads(graph.metadata["suppression"])
        found = Suppression(float(rules["confidence"]), float(rules["nms_iou"]), bool(rules["multi_label"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(
            f"'{path}' has suppression inside and does not tell its thresholds. Export it again."
        ) from error
    if not class_names_of(graph.metadata, None):
        raise ModelFileError(f"'{path}' has suppression inside and does not name its classes. Export it again.")
    return found


def _of_detections(
    run: Callable[[NDArray[Any]], tuple[NDArray[Any], ...]], fixed_batch: int | None, num_classes: int
) -> Network:
    """Return a network of boxes and scores whose graph gives detections ``[N, 7]``, for any number of images."""

    def network(images: NDArray[np.uint8]) -> tuple[Any, Any]:
        step = fixed_batch or len(images)
        parts = []
        for start in range(0, len(images), step):
            part = images[start : start + step]
            (rows,) = run(filled_up(part, step))
            rows = np.asarray(rows, np.float32).reshape(-1, 7)
            rows = rows[rows[:, 0] < len(part)]
            parts.append(rows + np.array([start, 0, 0, 0, 0, 0, 0], np.float32))
        return _spread(np.concatenate(parts), len(images), num_classes)

    return network


def _spread(rows: NDArray[np.float32], num_images: int, num_classes: int) -> tuple[Any, Any]:
    """Return detections ``[N, 7]`` as boxes ``[B, K, 4]`` and scores ``[B, K, C]``, where each has one class."""
    counts = np.bincount(rows[:, 0].astype(int), minlength=num_images)
    boxes = np.zeros((num_images, max(1, counts.max()), 4), np.float32)
    scores = np.zeros((*boxes.shape[:2], num_classes), np.float32)
    for image in range(num_images):
        own = rows[rows[:, 0] == image]
        places = np.arange(len(own))
        boxes[image, places] = own[:, 1:5]
        scores[image, places, own[:, 5].astype(int)] = own[:, 6]
    return boxes, scores
