"""Zeros around a feature: a convolution of each channel with 1 that reads its border."""

from __future__ import annotations

import numpy as np

from yolox.kernels.int8.int8_ir import LARGEST_WINDOW
from yolox.kernels.int8.onnx_graph import Graph, Node
from yolox.kernels.int8.ops.convolution import Window, append_convolution


def read_pad(graph: Graph, node: Node) -> None:
    """Read a Pad of rows and columns with zeros."""
    pads = [int(size) for size in graph.constant(node, 1, "sizes")]
    value = graph.optional(node, 2)
    source, rank = graph.feature(node.inputs[0], node), graph.rank(node.inputs[0])
    only_pixels = rank == 4 and len(pads) == 8 and not any((*pads[:2], *pads[4:6]))
    if node.text("mode", "constant") != "constant" or not only_pixels or (value is not None and float(value) != 0.0):
        raise node.refusal(f"sizes {pads} and mode {node.text('mode', 'constant')}; expected zeros around the pixels")
    if not any(pads):
        graph.features[node.output] = source
        return
    if max(map(abs, pads)) > LARGEST_WINDOW:
        raise node.refusal(f"its sizes {pads} are larger than {LARGEST_WINDOW}")
    channels = graph.feature_shape(node.inputs[0], node)[0]
    window = Window(padding=(pads[2], pads[3], pads[6], pads[7]))
    append_convolution(graph, node, source, np.ones((channels, 1, 1, 1)), np.zeros(channels), window, channels)
