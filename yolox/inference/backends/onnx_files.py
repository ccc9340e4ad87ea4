"""ONNX files of anybody as a model, and parts of a network as such files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolox.cpu.time_limit import limited_time
from yolox.errors import ModelFileError
from yolox.inference.artifacts.trust import check_onnx
from yolox.inference.backends.base import as_model_error, first_run, seconds_for
from yolox.inference.backends.graph_file import GraphFile
from yolox.inference.backends.onnxruntime import make_session, numpy_type, onnxruntime


@dataclass(frozen=True)
class OnnxPart:
    """A part of a network that reads and gives values by their names in the file.

    Args:
        model: The serialized ONNX file.
        threads: Threads of one call.
    """

    model: bytes = field(repr=False)
    threads: int = 1

    @cached_property
    def session(self) -> Any:
        """The library's session, started at the first call.

        Raises:
            MissingDependencyError: Without ONNX Runtime.
        """
        return limited_time(lambda: make_session(self.model, self.threads), seconds_for(0))

    def __call__(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the outputs by name for a batch."""
        fed = {
            port.name: np.ascontiguousarray(values[port.name], numpy_type(port.type))
            for port in self.session.get_inputs()
        }
        names = (port.name for port in self.session.get_outputs())
        return dict(zip(names, _run_limited(self.session, fed), strict=True))


def _run_limited(session: Any, fed: Mapping[str, Any]) -> list[Any]:
    """Return all outputs of one run; TimeoutError when it takes too long."""
    options = onnxruntime().RunOptions()

    def stop() -> None:
        options.terminate = True

    seconds = seconds_for(sum(array.size for array in fed.values()))
    return limited_time(lambda: list(session.run(None, fed, options)), seconds, stop)


def read_onnx(path: Path, threads: int) -> GraphFile:
    """Load an ONNX file with one input; torch is not needed.

    Raises:
        ModelFileError: When the file is absent, damaged or has several inputs.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"'{path}' cannot be read: {error.strerror}. Check the path.") from error
    check_onnx(path)
    session = first_run(path, lambda: make_session(content, threads))
    if len(session.get_inputs()) != 1:
        raise ModelFileError(f"'{path}' has {len(session.get_inputs())} inputs; expected one, the images.")
    port = session.get_inputs()[0]
    try:
        kind = numpy_type(port.type)
    except TypeError as error:
        raise ModelFileError(f"'{path}' takes {port.type}; expected numbers, the images.") from error

    def run(values: NDArray[Any]) -> tuple[NDArray[np.generic], ...]:
        with as_model_error(path):
            return tuple(_run_limited(session, {port.name: np.ascontiguousarray(values, kind)}))

    shape = tuple(axis if isinstance(axis, int) else None for axis in port.shape)
    return GraphFile(run, shape, len(session.get_outputs()), dict(session.get_modelmeta().custom_metadata_map))
