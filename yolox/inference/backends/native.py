"""Our own kernels: the whole network in 8 bits, an image at a time, so that its values stay in the core's cache."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from yolox.cpu.machine import read_machine
from yolox.errors import ModelFileError
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
from yolox.inference.backends.onnx_files import OnnxPart
from yolox.kernels.int8.bindings import Instructions
from yolox.kernels.int8.executable import Executable, instructions
from yolox.kernels.int8.int8_ir import Program
from yolox.kernels.int8.storage import load_program, save_program

if TYPE_CHECKING:
    from torch import nn

_log = logging.getLogger(__name__)


BEFORE, AFTER = "before.onnx", "after.onnx"


@dataclass(frozen=True)
class Surroundings:
    """What ONNX Runtime computes of a network before and after the program; values are passed by name.

    Args:
        before: The part that runs first, if there is one.
        after: The part that runs last, if there is one.
        sources: Names of the network's inputs.
        inputs: Names of what the program reads.
        outputs: Names of what it returns.
        results: Names of what the network returns.
    """

    before: OnnxPart | None
    after: OnnxPart | None
    sources: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    results: tuple[str, ...]

    def known(self, arrays: Sequence[Any]) -> dict[str, Any]:
        """Return all values that are known before the program runs."""
        values = dict(zip(self.sources, arrays, strict=True))
        return values if self.before is None else values | self.before(values)

    def read(self, arrays: Sequence[Any]) -> tuple[Any, ...]:
        """Return what the program reads of one batch of the network's inputs."""
        values = self.known(arrays)
        return tuple(values[name] for name in self.inputs)

    def run(self, arrays: Sequence[Any], program: Callable[..., Sequence[Any]]) -> tuple[Any, ...]:
        """Return the network's outputs for one batch.

        Args:
            arrays: The network's inputs.
            program: Computes the part between.
        """
        values = self.known(arrays)
        values |= zip(self.outputs, program(*(values[name] for name in self.inputs)), strict=True)
        values |= {} if self.after is None else self.after(values)
        return tuple(values[name] for name in self.results)


@dataclass(frozen=True)
class NativeRunner:
    """Runs a program; any batch size will do, as each image is computed by itself.

    Args:
        executable: The program, compiled.
        settings: ``streams`` images at once; ``threads`` counts those of all streams together.
        surroundings: What is computed elsewhere; ``None`` if nothing is.
    """

    executable: Executable
    settings: Settings
    surroundings: Surroundings | None = None

    @property
    def int8_share(self) -> float:
        """See ``Runner``."""
        return self.executable.program.int8_share

    def __call__(self, *inputs: Array) -> Arrays:
        """Run one batch."""
        arrays = tuple(as_numpy(array) for array in inputs)
        if self.surroundings is None:
            return like_inputs(self._program(*arrays), inputs)
        return like_inputs(self.surroundings.run(arrays, self._program), inputs)

    def _program(self, *arrays: np.ndarray[Any, Any]) -> Sequence[Any]:
        streams = self.settings.streams
        pixels = tuple(map(_as_pixels, arrays))
        return self.executable.run(pixels, streams, max(1, self.settings.threads // streams))

    def candidates(self, batch_size: int, threads: int) -> Sequence[Settings]:
        """A stream a core first, then fewer streams of several cores each."""
        counts = [streams for streams in range(min(threads, batch_size), 0, -1) if threads % streams == 0]
        return tuple(Settings(threads, streams) for streams in counts)

    def configured(self, settings: Settings) -> NativeRunner:
        """Return the runner with other settings."""
        return replace(self, settings=settings, surroundings=_with_threads(self.surroundings, settings.threads))

    def save(self, folder: Path) -> Mapping[str, Any]:
        """Write the program, and what is computed elsewhere."""
        save_program(self.executable.program, folder)
        if self.surroundings is None:
            return {}
        for name, part in ((BEFORE, self.surroundings.before), (AFTER, self.surroundings.after)):
            if part is not None:
                (folder / name).write_bytes(part.model)
        return {name: list(getattr(self.surroundings, name)) for name in _NAMES}


_NAMES = ("sources", "inputs", "outputs", "results")


def _with_threads(surroundings: Surroundings | None, threads: int) -> Surroundings | None:
    if surroundings is None:
        return None
    before, after = (part and replace(part, threads=threads) for part in (surroundings.before, surroundings.after))
    return replace(surroundings, before=before, after=after)


def _as_pixels(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return array if array.dtype in (np.float32, np.uint8) else array.astype(np.float32)


class NativeBackend:
    """Converts modules through ONNX to programs of its own."""

    def prepare(self, model: nn.Module, method: Method, context: PrepareContext) -> NativeRunner:
        """Convert, check against the module, and quantize.

        Raises:
            YoloxError: When the kernels compute nothing of the network.
        """
        from yolox.inference.convert.onnx_export import check_outputs, export_onnx
        from yolox.inference.convert.quantizers.native_int8 import quantize_network
        from yolox.kernels.int8.onnx_cut import cut_network

        if instructions() is Instructions.PORTABLE:
            context.progress(
                "this processor has none of AVX2, AVX-512 VNNI and ARM's dot products: the 8-bit kernels will be slow"
            )
        context.progress("exporting")
        path = context.work_dir / "model.onnx"
        export_onnx(model, context.sample, path, dynamic_batch=context.dynamic_batch)
        cut = cut_network(path)
        surroundings = None
        if cut.reason or cut.network.inputs != cut.sources:
            before, after = (part and OnnxPart(part, context.threads) for part in (cut.before, cut.after))
            names = (cut.sources, cut.network.inputs, cut.outputs, cut.results)
            surroundings = Surroundings(before or None, after or None, *names)
        if cut.reason:
            context.progress(f"ONNX Runtime computes {1 - cut.share:.1%} of the arithmetic: {cut.reason}")
        sample = context.small_sample(2)
        outputs = cut.network(*sample) if surroundings is None else surroundings.run(sample, cut.network)
        check_outputs(model, sample, outputs)

        def build(program: Program) -> NativeRunner:
            runner = NativeRunner(Executable(replace(program, int8_share=cut.share)), Settings(), surroundings)
            return runner.configured(runner.candidates(len(context.sample[0]), context.threads)[0])

        in_pairs = instructions() is Instructions.AVX2
        read = None if surroundings is None else surroundings.read
        return build(quantize_network(cut.network, context, build, in_pairs=in_pairs, read=read))

    def load(self, folder: Path, manifest: Manifest, module: nn.Module | None = None) -> NativeRunner:
        """Load the program; neither torch nor onnx is needed.

        Raises:
            ModelFileError: When the files are absent or damaged.
            MissingDependencyError: Where there is no C++ compiler.
        """
        executable, cores = Executable(load_program(folder)), read_machine().num_threads
        runner = NativeRunner(executable, manifest.settings, _surroundings(folder, manifest))
        if manifest.settings.threads <= cores:
            return runner
        chosen = runner.candidates(manifest.input_shapes[0][0], cores)[0]
        _log.warning("saved for %d threads, this machine gives %d: %s", manifest.settings.threads, cores, chosen)
        return runner.configured(chosen)


def _surroundings(folder: Path, manifest: Manifest) -> Surroundings | None:
    """Return what ONNX Runtime computes of a saved model.

    Raises:
        ModelFileError: When the manifest does not tell the names of the values.
    """
    if not manifest.backend_data:
        return None
    names = [manifest.backend_data.get(name) for name in _NAMES]
    if not all(isinstance(some, list | tuple) and all(isinstance(one, str) for one in some) for some in names):
        raise ModelFileError(f"'{folder}' does not tell what its parts are called. Save the model again.")
    paths = (folder / name for name in (BEFORE, AFTER))
    before, after = (
        OnnxPart(path.read_bytes(), manifest.settings.threads) if path.exists() else None for path in paths
    )
    return Surroundings(before, after, *(tuple(some or ()) for some in names))


BACKEND = NativeBackend()
"""The instance that ``get_backend`` returns."""
