"""int8 for torch: torchao's PT2E with Inductor's x86 scheme, on convolutions and linear layers only."""

from __future__ import annotations

from dataclasses import replace

from torch import nn
from torch.fx import GraphModule

from yolox.inference.backends.base import PrepareContext
from yolox.inference.convert.quantizers.fx_graph import quantize_graph
from yolox.inference.convert.quiet import quiet


def quantize_pt2e(model: nn.Module, context: PrepareContext) -> tuple[GraphModule, float]:
    """Return the calibrated and converted graph of ``model``, and its share of int8 multiply-accumulates.

    Weights have a scale for each output channel. Outliers of the inputs are cut where that makes
    the squared error smaller. Layers that suffer most stay in float (see ``mixed_precision``).

    Args:
        model: Takes positional tensors, returns a flat tuple; it is left as it is.
        context: Calibration data and the bound on accuracy.

    Raises:
        UsageError: Without calibration data.
    """
    with quiet():
        from torchao.quantization.pt2e.observer import MinMaxObserver
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer

        default = x86_inductor_quantizer.get_default_x86_inductor_quantization_config()
        # min-max observers, because ``quantize_graph`` sets the ranges itself
        observed = MinMaxObserver.with_args(eps=2**-12)
        activation = replace(default.input_activation, observer_or_fake_quant_ctr=observed)
        config = replace(default, input_activation=activation, output_activation=activation)

        def prepare(graph: GraphModule) -> GraphModule:
            quantizer = x86_inductor_quantizer.X86InductorQuantizer()
            quantizer.set_global(config)
            prepared: GraphModule = prepare_pt2e(graph, quantizer)
            return prepared

        return quantize_graph(prepare, convert_pt2e, model, context)
