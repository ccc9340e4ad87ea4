"""ONNX Runtime: pieces of the batch side by side, read from and written into numpy memory without copies."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from yolox.cpu.time_limit import limited_time
from yolox.errors import ModelFileError, needs
from yolox.inference.artifacts.manifest import Manifest
from yolox.inference.backends.base import (
    Array,
    Arrays,
    Method,
    PrepareContext,
    Settings,
    as_model_error,
    as_numpy,
    filled_up,
    like_inputs,
    seconds_for,
)
from yolox.precision_names import Precision
from yolox.temporary_folders import TemporaryFolder

if TYPE_CHECKING:
    from torch import nn

MODEL = "model.onnx"
INT8_KERNELS = (
    *("QLinearConv", "ConvInteger", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat"),
    *("DynamicQuantizeMatMul", "QGemm", "ConvIntegerToFloat"),
)
FLOAT_KERNELS = ("Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose", "MatMul", "FusedMatMul", "Gemm", "FusedGemm")
WEIGHT_INPUTS = {"QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3}
"""Which input holds the weights; 1 in all other kernels."""


def onnxruntime() -> Any:
    """Return the library.

    Raises:
        MissingDependencyError: When it is not installed.
    """
    with needs("onnxruntime", "pip install onnxruntime"):
        import onnxruntime as library
    return library


def make_session(model: bytes, threads: int, profile_prefix: str | None = None) -> Any:
    """Return a session on the CPU with all graph optimizations.

    Args:
        model: A serialized ONNX file.
        threads: Threads of one call; 0 takes as many as there are cores.
        profile_prefix: Write a profile to a file with this prefix.

    Raises:
        Exception: Of the library's many classes, when the file cannot be read; `UnicodeDecodeError` for a text in it.
    """
    library = onnxruntime()
    options = library.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # its errors are raised as well; printed, names in the file would reach the terminal
    options.graph_optimization_level = library.GraphOptimizationLevel.ORT_ENABLE_ALL
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile_prefix
        # packed weights would be missing from the profile
        options.add_session_config_entry("session.disable_prepacking", "1")
    session = library.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    for port in (*session.get_inputs(), *session.get_outputs()):
        _ = port.name, port.shape  # the library decodes texts only when they are asked for
    _ = session.get_modelmeta().custom_metadata_map
    return session


@dataclass(frozen=True)
class OnnxRuntimeRunner:
    """Runs an ONNX model.

    Args:
        model: The serialized ONNX file.
        settings: What to run with.
        batch: The only batch size the model accepts, or ``None`` for any.
        int8_share: See ``Runner``.
    """

    model: bytes = field(repr=False)
    settings: Settings
    batch: int | None = None
    int8_share: float | None = None

    @cached_property
    def _sessions(self) -> list[Any]:
        per_stream = max(1, self.settings.threads // self.settings.streams)
        # one thread each: callers' threads compute, and one session serves them all
        count = 1 if per_stream == 1 else self.settings.streams
        return [make_session(self.model, per_stream) for _ in range(count)]

    @cached_property
    def _workers(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.settings.streams, thread_name_prefix="onnxruntime")

    @cached_property
    def _options(self) -> Any:
        return onnxruntime().RunOptions()

    def stop(self) -> None:
        """End the run that is under way; see `GraphRunner`."""
        self._options.terminate = True

    def __call__(self, *inputs: Array) -> Arrays:
        """Run one batch; a model of a fixed batch size gets its last piece filled up."""
        session = self._sessions[0]
        arrays = tuple(
            np.ascontiguousarray(as_numpy(array), dtype=numpy_type(port.type))
            for array, port in zip(inputs, session.get_inputs(), strict=True)
        )
        total = len(arrays[0])
        size = self.batch or min(self.settings.micro_batch or total, total)
        starts = range(0, total, size)
        outputs = _allocate(session, total)

        def run(number: int, start: int) -> list[Any]:
            piece = tuple(filled_up(array[start : start + size], self.batch or 0) for array in arrays)
            return _run_piece(self._sessions[number % len(self._sessions)], piece, outputs, start, self._options)

        if self.settings.streams == 1 or len(starts) == 1:
            pieces = [run(number, start) for number, start in enumerate(starts)]
        else:
            pieces = list(self._workers.map(run, range(len(starts)), starts))
        joined = [
            np.concatenate([piece[index] for piece in pieces])[:total] if output is None else output
            for index, output in enumerate(outputs)
        ]
        return like_inputs(joined, inputs)

    def candidates(self, batch_size: int, threads: int) -> Sequence[Settings]:
        """One stream per core with small pieces first; then one stream that has all the cores."""
        if self.batch is not None or batch_size == 1:
            return (Settings(threads), Settings(1)) if threads > 1 else (Settings(threads),)
        sizes = [size for size in (4, 8, 2, 1, 16) if size < batch_size]
        in_streams = [Settings(threads, threads, size) for size in sizes if threads > 1 and size * 2 <= batch_size]
        return (*in_streams, *(Settings(threads, 1, size) for size in sizes[:2]), Settings(threads))

    def configured(self, settings: Settings) -> OnnxRuntimeRunner:
        """Return the runner with other settings; its sessions start at the first call."""
        return replace(self, settings=settings)

    def save(self, folder: Path) -> Mapping[str, Any]:
        """Write the model; optimizations that fit this processor only are redone by ``load``."""
        (folder / MODEL).write_bytes(self.model)
        return {}


def _run_piece(session: Any, piece: Arrays, outputs: Sequence[Any], start: int, options: Any) -> list[Any]:
    """Run one piece into its part of ``outputs`` and return the outputs that had no room there, else ``None``."""
    binding = session.io_binding()
    for port, array in zip(session.get_inputs(), piece, strict=True):
        binding.bind_cpu_input(port.name, array)
    length = len(piece[0])
    for port, output in zip(session.get_outputs(), outputs, strict=True):
        if output is None or start + length > len(output):
            binding.bind_output(port.name, "cpu")
        else:
            part = output[start : start + length]
            binding.bind_output(port.name, "cpu", 0, part.dtype, part.shape, part.ctypes.data)
    session.run_with_iobinding(binding, options)
    results: list[Any] = []
    for value, output in zip(binding.get_outputs(), outputs, strict=True):
        if output is not None and start + length > len(output):
            output[start:] = value.numpy()[: len(output) - start]
        results.append(value.numpy() if output is None else None)
    return results


def _allocate(session: Any, total: int) -> list[Any]:
    """Return one array per output for all rows, ``None`` where the file does not tell the shape."""
    outputs: list[Any] = []
    for port in session.get_outputs():
        tail = list(port.shape[1:]) if port.shape else None
        known = tail is not None and all(isinstance(axis, int) for axis in tail)
        outputs.append(np.empty((total, *(tail or ())), numpy_type(port.type)) if known else None)
    return outputs


def numpy_type(name: str) -> np.dtype[Any]:
    """Return the type that the library calls ``tensor(float)`` and the like; TypeError where NumPy has none."""
    names = {"float": "float32", "double": "float64"}
    kind = name.removeprefix("tensor(").removesuffix(")")
    return np.dtype(names.get(kind, kind))


class OnnxRuntimeBackend:
    """Converts modules to ONNX."""

    def prepare(self, model: nn.Module, method: Method, context: PrepareContext) -> OnnxRuntimeRunner:
        """Export, check against the module, and quantize if the method says so."""
        from yolox.inference.convert.onnx_export import check_outputs, export_onnx

        context.progress("exporting")
        path = context.work_dir / MODEL
        export_onnx(model, context.sample, path, dynamic_batch=context.dynamic_batch)
        batch = context.fixed_batch
        runner = OnnxRuntimeRunner(path.read_bytes(), Settings(context.threads), batch)
        sample = context.small_sample(2)
        check_outputs(model, sample, runner(*sample))
        settings = runner.candidates(len(context.sample[0]), context.threads)[0]
        if method.precision is not Precision.INT8:
            return runner.configured(settings)
        from yolox.inference.convert.quantizers.onnx import quantize_onnx

        def build(quantized: bytes) -> OnnxRuntimeRunner:
            return OnnxRuntimeRunner(quantized, settings, batch)

        quantized = quantize_onnx(path, method.options["quantizer"], context, build)
        return replace(build(quantized), int8_share=int8_share(quantized, context.small_sample(1)))

    def load(self, folder: Path, manifest: Manifest, module: nn.Module | None = None) -> OnnxRuntimeRunner:
        """Load the model; torch is not needed.

        Raises:
            ModelFileError: When the file is absent or damaged.
        """
        path = folder / MODEL
        batch = manifest.fixed_batch
        try:
            runner = OnnxRuntimeRunner(path.read_bytes(), manifest.settings, batch, manifest.int8_share)
            with as_model_error(path):
                assert limited_time(lambda: runner._sessions, seconds_for(0))
        except OSError as error:
            raise ModelFileError(f"'{path}' cannot be read: {error.strerror}. Save the model again.") from error
        return runner


def int8_share(model: bytes, inputs: Arrays) -> float:
    """Return the share of multiply-accumulates that run in int8 kernels, read from a profile of one run.

    Args:
        model: The serialized ONNX file.
        inputs: One batch.
    """
    with TemporaryFolder("profile") as folder:
        session = make_session(model, 1, str(folder / "profile"))
        session.run(None, {port.name: array for port, array in zip(session.get_inputs(), inputs, strict=True)})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    total, int8 = 0, 0
    for event in events:
        facts = event.get("args", {})
        kernel = facts.get("op_name")
        if kernel in (*INT8_KERNELS, *FLOAT_KERNELS) and event.get("name", "").endswith("_kernel_time"):
            macs = _multiply_accumulates(kernel, facts)
            total += macs
            int8 += macs if kernel in INT8_KERNELS else 0
    return int8 / total if total else 0.0


def _multiply_accumulates(kernel: str, facts: Mapping[str, Any]) -> int:
    """Return the products that one profiled kernel call summed up."""
    shapes = [next(iter(entry.values())) for entry in facts["input_type_shape"]]
    weights = shapes[WEIGHT_INPUTS.get(kernel, 1)]
    result = next(iter(facts["output_type_shape"][0].values()))
    # a convolution's weights are [out, in, ...]; a product sums over the last axis of its first operand
    depth = int(np.prod(weights[1:])) if "Conv" in kernel else shapes[0][-1]
    return int(np.prod(result)) * depth


BACKEND = OnnxRuntimeBackend()
