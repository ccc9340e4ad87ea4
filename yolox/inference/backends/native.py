"""Our own kernels: the whole network in 8 bits, an image at a time, so that its values stay in the core's cache."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from yolox.cpu.machine import read_machine
from yolox.inference.artifacts.manifest import Manifest
from yolox.inference.backends.base import (
    Array,
    Arrays,
    Method,
    PrepareContext,
    Settings,
    as_numpy,
    like_inputs,
)
from yolox.kernels.int8.bindings import Instructions
from yolox.kernels.int8.executable import Executable, instructions
from yolox.kernels.int8.int8_ir import Program
from yolox.kernels.int8.storage import load_program, save_program

if TYPE_CHECKING:
    from torch import nn

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NativeRunner:
    """Runs a program; any batch size will do, as each image is computed by itself.

    Args:
        executable: The program, compiled.
        settings: ``streams`` images at once; ``threads`` counts those of all streams together.
    """

    executable: Executable
    settings: Settings

    @property
    def int8_share(self) -> float:
        """See ``Runner``."""
        return self.executable.program.int8_share

    def __call__(self, *inputs: Array) -> Arrays:
        """Run one batch."""
        arrays = tuple(_as_pixels(as_numpy(array)) for array in inputs)
        streams = self.settings.streams
        return like_inputs(self.executable.run(arrays, streams, max(1, self.settings.threads // streams)), inputs)

    def candidates(self, batch_size: int, threads: int) -> Sequence[Settings]:
        """A stream a core first, then fewer streams of several cores each."""
        counts = [streams for streams in range(min(threads, batch_size), 0, -1) if threads % streams == 0]
        return tuple(Settings(threads, streams) for streams in counts)

    def configured(self, settings: Settings) -> NativeRunner:
        """Return the runner with other settings."""
        return replace(self, settings=settings)

    def save(self, folder: Path) -> Mapping[str, Any]:
        """Write the program."""
        save_program(self.executable.program, folder)
        return {}


def _as_pixels(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return array if array.dtype in (np.float32, np.uint8) else array.astype(np.float32)


class NativeBackend:
    """Converts modules through ONNX to programs of its own."""

    def prepare(self, model: nn.Module, method: Method, context: PrepareContext) -> NativeRunner:
        """Convert, check against the module, and quantize.

        Raises:
            YoloxError: When the network holds something that the kernels do not compute.
        """
        from yolox.inference.convert.onnx_export import check_outputs, export_onnx
        from yolox.inference.convert.quantizers.native_int8 import quantize_network
        from yolox.kernels.int8.float_ir import Network
        from yolox.kernels.int8.onnx_reader import read_network

        if instructions() is Instructions.PORTABLE:
            context.progress("this processor has neither AVX-512 VNNI nor AVX2: the 8-bit kernels will be slow")
        context.progress("exporting")
        path = context.work_dir / "model.onnx"
        export_onnx(model, context.sample, path, dynamic_batch=context.dynamic_batch)
        network: Network = read_network(path)
        sample = context.small_sample(2)
        check_outputs(model, sample, network(*sample))

        def build(program: Program) -> NativeRunner:
            runner = NativeRunner(Executable(program), Settings())
            return runner.configured(runner.candidates(len(context.sample[0]), context.threads)[0])

        in_pairs = instructions() is Instructions.AVX2
        return build(quantize_network(network, context, build, in_pairs=in_pairs))

    def load(self, folder: Path, manifest: Manifest, module: nn.Module | None = None) -> NativeRunner:
        """Load the program; neither torch nor onnx is needed.

        Raises:
            ModelFileError: When the files are absent or damaged.
            MissingDependencyError: Where there is no C++ compiler.
        """
        runner, cores = NativeRunner(Executable(load_program(folder)), manifest.settings), read_machine().num_threads
        if manifest.settings.threads <= cores:
            return runner
        chosen = runner.candidates(manifest.input_shapes[0][0], cores)[0]
        _log.warning("saved for %d threads, this machine gives %d: %s", manifest.settings.threads, cores, chosen)
        return runner.configured(chosen)


BACKEND = NativeBackend()
"""The instance that ``get_backend`` returns."""
