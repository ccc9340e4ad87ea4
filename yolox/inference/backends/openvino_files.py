"""OpenVINO IR files for other programs, and those of anybody as a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolox.cpu.time_limit import limited_time
from yolox.errors import ModelFileError
from yolox.inference.artifacts.trust import check_openvino
from yolox.inference.backends.base import as_model_error, first_run, seconds_for
from yolox.inference.backends.graph_file import GraphFile
from yolox.inference.backends.openvino import core, openvino

_INFO = "model_info"


def write_ir(onnx_file: Path, target: Path, description: Mapping[str, str]) -> None:
    """Write an ONNX file as OpenVINO IR: ``target`` (.xml) and the weights beside it (.bin), in float32.

    Args:
        onnx_file: The file to convert.
        target: The .xml file.
        description: Text by name, which ``model.get_rt_info(["model_info", name])`` reads again.
    """
    library = openvino()
    model = library.convert_model(str(onnx_file))
    for name, text in description.items():
        model.set_rt_info(text, [_INFO, name])
    library.save_model(model, str(target), compress_to_fp16=False)


def read_ir(path: Path, threads: int) -> GraphFile:
    """Load an OpenVINO IR file (.xml, weights in the .bin file beside it) with one input; torch is not needed.

    Raises:
        ModelFileError: When the files are absent, damaged or have several inputs.
    """
    check_openvino(path)
    model = first_run(path, lambda: core().read_model(str(path)))
    if len(model.inputs) != 1:
        raise ModelFileError(f"'{path}' has {len(model.inputs)} inputs; expected one, the images.")
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = first_run(path, lambda: core().compile_model(model, "CPU", settings))
    with as_model_error(path):
        port = compiled.input(0)
        kind = port.get_element_type().to_dtype()
        shape = tuple(None if axis.is_dynamic else int(axis.get_length()) for axis in port.get_partial_shape())
        metadata = _metadata(model)

    def run(values: NDArray[Any]) -> tuple[NDArray[np.generic], ...]:
        with as_model_error(path):
            found = limited_time(lambda: compiled(np.ascontiguousarray(values, kind)), seconds_for(values.size))
            return tuple(np.array(found[output]) for output in compiled.outputs)

    return GraphFile(run, shape, len(model.outputs), metadata)


def _metadata(model: Any) -> dict[str, str]:
    found = {}
    for name in ("class_names", "input_size", "outputs", "suppression"):
        if model.has_rt_info([_INFO, name]):
            found[name] = str(model.get_rt_info([_INFO, name]).astype(str))
    return found
