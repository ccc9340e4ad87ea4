"""ExecuTorch with its XNNPACK back end: a program of torch.export, lowered ahead of time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.engines.inputs import FLOAT_CONVOLUTIONS, PREDICTION_CHANNELS, PROGRAM_BATCHES, Inputs
from benchmarks.engines.pieces import PieceRunner, Run
from yolox.inference.backends.base import Settings

NUM_CALIBRATION = 32
"""Its observers take seconds an image."""


def prepare(inputs: Inputs, folder: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Lower for each batch size, quantized where the options ask for it."""
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    for batch in PROGRAM_BATCHES:
        program = torch.export.load(inputs.program(batch))
        if options.get("int8"):
            program = _quantized(program, inputs, batch, options)
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
        (folder / f"model-{batch}.pte").write_bytes(lowered.buffer)
    return {}


def _quantized(program: Any, inputs: Inputs, batch: int, options: Mapping[str, Any]) -> Any:
    """Return the program after PyTorch's post-training quantization with XNNPACK's quantizer."""
    import torch
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    module = program.module()
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    if options.get("mixed"):
        in_float = _float_nodes(module.graph)
        quantizer.set_filter_function(lambda node: node.name not in in_float)
    observed = prepare_pt2e(module, quantizer)
    images = inputs.calibration[:NUM_CALIBRATION]
    with torch.no_grad():
        for start in range(0, len(images) - batch + 1, batch):
            observed(torch.from_numpy(images[start : start + batch].astype(np.float32)))
    return torch.export.export(convert_pt2e(observed), (torch.from_numpy(inputs.batch(batch)),))


def _float_nodes(graph: Any) -> set[str]:
    """Return the operators that stay in float, see `FLOAT_CONVOLUTIONS`."""
    found: set[str] = set()
    after_prediction: set[str] = set()
    convolutions = 0
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        is_convolution = "conv2d" in str(node.target)
        convolutions += is_convolution
        predicts = is_convolution and node.meta["val"].shape[1] in PREDICTION_CHANNELS
        if predicts or any(source.name in after_prediction for source in node.all_input_nodes):
            after_prediction.add(node.name)
        elif convolutions <= FLOAT_CONVOLUTIONS:
            found.add(node.name)
    return found | after_prediction


def load(inputs: Inputs, folder: Path, options: Mapping[str, Any]) -> PieceRunner:
    """Load the programs; the thread pool of the process has the threads."""
    import torch
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
    from executorch.runtime import Runtime

    runtime = Runtime.get()

    def load_program(size: int, threads: int) -> Run:
        _unsafe_reset_threadpool(threads)
        method = runtime.load_program(folder / f"model-{size}.pte").load_method("forward")
        assert method is not None

        def run(images: NDArray[np.float32]) -> list[NDArray[np.float32]]:
            return [output.numpy() for output in method.execute([torch.from_numpy(images)])]

        return run

    return PieceRunner(load_program, PROGRAM_BATCHES, Settings(options["threads"], 1, 1))
