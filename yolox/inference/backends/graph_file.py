"""A file that holds a graph of operators, ready to run: what ONNX and OpenVINO files have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class GraphFile:
    """A file of a graph with one input.

    Args:
        run: Maps the input to the outputs, as the graph has them.
        input_shape: Shape of the input, None for free axes.
        num_outputs: Number of outputs.
        metadata: Text by name.
    """

    run: Callable[[NDArray[Any]], tuple[NDArray[np.generic], ...]]
    input_shape: tuple[int | None, ...]
    num_outputs: int
    metadata: Mapping[str, str]


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
