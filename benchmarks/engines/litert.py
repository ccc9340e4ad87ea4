"""LiteRT (TensorFlow Lite) with its XNNPACK delegate: a program of torch.export through litert-torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.engines.inputs import FLOAT_CONVOLUTIONS, PREDICTION_CHANNELS, PROGRAM_BATCHES, Inputs
from benchmarks.engines.pieces import PieceRunner, Run
from yolox.inference.backends.base import Settings

SIGNATURE, INPUT = "serving_default", "args_0"
"""Names that litert-torch gives."""


def prepare(inputs: Inputs, folder: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Convert for each batch size, and quantize where the options ask for it."""
    import litert_torch
    import torch

    class Program(torch.nn.Module):
        """The exported program, which is in evaluation mode already and refuses to be told so."""

        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, images: torch.Tensor) -> Any:
            return self.inner(images)

        def train(self, mode: bool = True) -> Program:
            return self

    for batch in PROGRAM_BATCHES:
        module = Program(torch.export.load(inputs.program(batch)).module())
        path = folder / f"model-{batch}.tflite"
        litert_torch.convert(module, (torch.from_numpy(inputs.batch(batch)),)).export(str(path))
        if options.get("int8"):
            _quantize(path, inputs, batch, options)
    return {}


def _quantize(path: Path, inputs: Inputs, batch: int, options: Mapping[str, Any]) -> None:
    """Quantize weights by channel and activations by tensor, inputs and outputs apart."""
    from ai_edge_quantizer import qtyping, quantizer, recipe
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    worker = quantizer.Quantizer(str(path), recipe.static_wi8_ai8())

    def in_float(tensors: str, operation: str) -> None:
        kind = qtyping.TFLOperationName(operation)
        worker.update_quantization_recipe(tensors, kind, algorithm_key=AlgorithmName.NO_QUANTIZE)

    in_float(".*", "INPUT")
    in_float(".*", "OUTPUT")
    if options.get("mixed"):
        in_float(f"^({'|'.join(map(re.escape, _float_tensors(path)))});?$", "*")
    images = inputs.calibration
    samples = [images[start : start + batch].astype(np.float32) for start in range(0, len(images) - batch + 1, batch)]
    found = worker.calibrate({SIGNATURE: [{INPUT: sample} for sample in samples]})
    worker.quantize(found).export_model(str(path), overwrite=True)


def _float_tensors(path: Path) -> list[str]:
    """Return the outputs of the operators that stay in float, see `FLOAT_CONVOLUTIONS`."""
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils

    model = tfl_flatbuffer_utils.read_model(str(path))
    graph = model.subgraphs[0]
    names = tfl_flatbuffer_utils.TFL_OP_CODE_TO_NAME
    after_prediction: set[int] = set()
    found, convolutions = [], 0
    for operator in graph.operators:
        kind = names.get(model.operatorCodes[operator.opcodeIndex].builtinCode)
        output = graph.tensors[operator.outputs[0]]
        is_convolution = kind is not None and kind.value.endswith("CONV_2D")
        convolutions += is_convolution
        predicts = is_convolution and output.shape[-1] in PREDICTION_CHANNELS
        if predicts or not after_prediction.isdisjoint(operator.inputs):
            after_prediction.update(operator.outputs)
            found.append(output.name.decode())
        elif convolutions <= FLOAT_CONVOLUTIONS:
            found.append(output.name.decode())
    return found


def load(inputs: Inputs, folder: Path, options: Mapping[str, Any]) -> PieceRunner:
    """Load the models; XNNPACK is what the interpreter takes by itself."""
    from ai_edge_litert.interpreter import Interpreter

    def load_model(size: int, threads: int) -> Run:
        interpreter = Interpreter(model_path=str(folder / f"model-{size}.tflite"), num_threads=threads)
        interpreter.allocate_tensors()
        (into,) = (detail["index"] for detail in interpreter.get_input_details())
        out = [detail["index"] for detail in interpreter.get_output_details()]

        def run(images: NDArray[np.float32]) -> list[NDArray[np.float32]]:
            interpreter.set_tensor(into, images)
            interpreter.invoke()
            return [interpreter.get_tensor(index) for index in out]

        return run

    return PieceRunner(load_model, PROGRAM_BATCHES, Settings(options["threads"], 1, 1), has_streams=True)
