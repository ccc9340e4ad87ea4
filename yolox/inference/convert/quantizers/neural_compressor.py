"""int8 for torch by Intel Neural Compressor 3: its PT2E flow, on convolutions and linear layers only."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.fx import GraphModule

from yolox.inference.backends.base import PrepareContext
from yolox.inference.convert.quantizers.fx_graph import fold_weights_, quantize_graph
from yolox.inference.convert.quiet import quiet


def quantize_static(model: nn.Module, context: PrepareContext) -> tuple[GraphModule, float]:
    """Return the calibrated and converted graph of ``model``, and its share of int8 multiply-accumulates.

    Neural Compressor prepares and converts; which inputs are quantized, their ranges and what stays in float is decided
    as for ``pt2e.quantize_pt2e``.

    Args:
        model: Takes positional tensors, returns a flat tuple; it is left as it is.
        context: Calibration data and the bound on accuracy.

    Raises:
        UsageError: Without calibration data.
    """
    with quiet():
        from neural_compressor.torch import quantization

        def prepare(graph: GraphModule) -> GraphModule:
            config = quantization.StaticQuantConfig(excluded_precisions=["bf16", "fp16"])
            source: Any = graph
            # what its own export function notes on the graph
            source._exported = True
            source.dynamic_shapes = None
            prepared: GraphModule = quantization.prepare(source, config)
            return prepared

        def convert(graph: GraphModule) -> GraphModule:
            return fold_weights_(quantization.convert(graph))

        return quantize_graph(prepare, convert, model, context)
