"""OpenVINO: the whole batch in pieces, several of them side by side, straight from and into the caller's memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from yolox.cpu.time_limit import limited_time
from yolox.errors import ModelFileError, YoloxError, needs
from yolox.inference.artifacts.manifest import Manifest
from yolox.inference.backends.base import (
    Array,
    Arrays,
    Method,
    PrepareContext,
    Settings,
    as_numpy,
    filled_up,
    like_inputs,
    seconds_for,
)
from yolox.inference.backends.rational_silu import use_rational_silu_
from yolox.inference.convert.quantizers.nncf import HEAVY, multiply_accumulates, quantize_openvino
from yolox.precision_names import Precision

if TYPE_CHECKING:
    from torch import nn

MODEL = "model.xml"
COMPILED_SIZES = 4
"""Batch sizes kept compiled; one more replaces the oldest."""


def openvino() -> Any:
    """Return the library.

    Raises:
        MissingDependencyError: When it is not installed.
    """
    with needs("openvino", "pip install openvino"):
        import openvino as library
    return library


@cache
def core() -> Any:
    """Return the library's core of this process."""
    return openvino().Core()


@dataclass
class _Pool:
    """A compiled model, its requests, and the memory that each of them reads and writes."""

    compiled: Any
    requests: list[Any]
    alive: dict[int, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OpenVinoRunner:
    """Runs a model with OpenVINO on the CPU.

    Args:
        model: The ``openvino.Model``; never changed here.
        settings: What to run with.
        hint: Precision of the layers that are not int8: ``f32``, ``bf16`` or ``f16``.
        batch: The only batch size the model accepts, or ``None`` for any.
        int8_share: See ``Runner``.
        compress: Store weights as fp16.
    """

    model: Any
    settings: Settings
    hint: str = "f32"
    batch: int | None = None
    int8_share: float | None = None
    compress: bool = False
    _pools: dict[Any, _Pool] = field(default_factory=dict, repr=False)

    def __call__(self, *inputs: Array) -> Arrays:
        """Run one batch; an incomplete last piece is filled up with its own last row."""
        arrays = tuple(as_numpy(array) for array in inputs)
        total = len(arrays[0])
        size = self._piece_size(total)
        pool = self.pool(size, tuple(array.dtype for array in arrays))
        outputs = _allocate(pool.compiled, total, size)
        pieces = -(-total // size)
        for number in range(pieces + len(pool.requests)):
            # a piece's result is fetched just before its request is needed again
            done = number - len(pool.requests)
            if 0 <= done < pieces:
                self._collect(pool, done, size, outputs)
            if number < pieces:
                self._start(pool, number, size, arrays, outputs)
        joined = [np.concatenate(output)[:total] if isinstance(output, list) else output for output in outputs]
        return like_inputs(joined, inputs)

    def stop(self) -> None:
        """Do nothing: OpenVINO ends no run inside a loop of the graph. See `GraphRunner`."""

    def _start(self, pool: _Pool, number: int, size: int, arrays: Arrays, outputs: list[Any]) -> None:
        slot = number % len(pool.requests)
        request = pool.requests[slot]
        tensor = openvino().Tensor
        pieces = [filled_up(array[number * size : (number + 1) * size], size) for array in arrays]
        targets = [_room(output, number, size) for output in outputs]
        # shared tensors do not keep their numpy arrays alive
        pool.alive[slot] = (pieces, targets)
        for index, piece in enumerate(pieces):
            request.set_input_tensor(index, tensor(piece, shared_memory=True))
        for index, target in enumerate(targets):
            if target is not None:
                request.set_output_tensor(index, tensor(target, shared_memory=True))
        request.start_async()

    def _collect(self, pool: _Pool, number: int, size: int, outputs: list[Any]) -> None:
        request = pool.requests[number % len(pool.requests)]
        request.wait()
        for index, output in enumerate(outputs):
            if isinstance(output, list):
                output.append(request.get_output_tensor(index).data.copy())
            elif (number + 1) * size > len(output):
                rest = len(output) - number * size
                output[number * size :] = request.get_output_tensor(index).data[:rest]

    def _piece_size(self, total: int) -> int:
        if self.batch is not None:
            return self.batch
        size = self.settings.micro_batch or total
        return min(size, total)

    def pool(self, size: int, dtypes: tuple[Any, ...] | None = None) -> _Pool:
        """Return the compiled model for pieces of ``size`` rows and inputs of these types, compiling it if needed."""
        types = dtypes or tuple(np.dtype(port.get_element_type().to_dtype()) for port in self.model.inputs)
        key = (size, tuple(str(dtype) for dtype in types))
        if key not in self._pools:
            while len(self._pools) >= COMPILED_SIZES:
                self._pools.pop(next(iter(self._pools)))
            compiled = core().compile_model(self._shaped(size, types), "CPU", self._config())
            self._pools[key] = _Pool(compiled, [compiled.create_infer_request() for _ in range(self.settings.streams)])
        return self._pools[key]

    def _shaped(self, size: int, dtypes: tuple[Any, ...]) -> Any:
        model = self.model.clone()
        if self.settings.rational_silu:
            use_rational_silu_(model, openvino().opset13)
        model = _accept_types(model, dtypes)
        if self.batch is None:
            shapes = {port: port.get_partial_shape() for port in model.inputs}
            for shape in shapes.values():
                shape[0] = size
            model.reshape(shapes)
        return model

    def _config(self) -> dict[str, Any]:
        return {
            "INFERENCE_PRECISION_HINT": self.hint,
            "INFERENCE_NUM_THREADS": self.settings.threads,
            "NUM_STREAMS": self.settings.streams,
            "PERFORMANCE_HINT": "THROUGHPUT" if self.settings.streams > 1 else "LATENCY",
        }

    def candidates(self, batch_size: int, threads: int) -> Sequence[Settings]:
        """One stream per core with small pieces first; then one stream that has all the cores."""
        light = (True, False) if self.hint != "f32" else (False,)  # its error is below the rounding of bf16 only
        if self.batch is not None or batch_size == 1:
            counts = (threads, 1) if threads > 1 else (threads,)
            return tuple(Settings(count, rational_silu=silu) for count in counts for silu in light)
        found = []
        for size in (4, 2, 8, 16, 1):
            streams = min(threads, -(-batch_size // size))
            if streams > 1 or (threads == 1 and size <= batch_size):
                found += [Settings(threads, streams, size, rational_silu=silu) for silu in light]
        whole = (
            Settings(threads, rational_silu=light[0]),
            Settings(threads, 1, min(8, batch_size), rational_silu=light[0]),
        )
        return (*found, *whole)

    def configured(self, settings: Settings) -> OpenVinoRunner:
        """Return the runner with other settings; it compiles at its first call."""
        return replace(self, settings=settings, _pools={})

    def save(self, folder: Path) -> Mapping[str, Any]:
        """Write the model in OpenVINO's own format."""
        openvino().save_model(self.model, str(folder / MODEL), compress_to_fp16=self.compress)
        return {"hint": self.hint, "compress": self.compress}


def _accept_types(model: Any, dtypes: tuple[Any, ...]) -> Any:
    """Let the compiled model convert inputs itself, so that uint8 images need no float copy in the caller's memory."""
    library = openvino()
    wanted = [library.Type(np.dtype(dtype)) for dtype in dtypes]
    if all(port.get_element_type() == kind for port, kind in zip(model.inputs, wanted, strict=True)):
        return model
    steps = library.preprocess.PrePostProcessor(model)
    for index, kind in enumerate(wanted):
        steps.input(index).tensor().set_element_type(kind)
    return steps.build()


def _room(output: Any, number: int, size: int) -> Any:
    """Return where a piece's output goes: its part of the whole, spare room if it is incomplete, None if unknown."""
    if isinstance(output, list):
        return None
    part = output[number * size : (number + 1) * size]
    return part if len(part) == size else np.empty((size, *output.shape[1:]), output.dtype)


def _allocate(compiled: Any, total: int, size: int) -> list[Any]:
    """Return one array per output for all rows, or an empty list of pieces where the shape is only known afterwards."""
    outputs: list[Any] = []
    for port in compiled.outputs:
        shape = port.get_partial_shape()
        known = shape.is_static and len(shape) > 0 and shape[0].get_length() == size
        dtype = np.dtype(port.get_element_type().to_dtype())
        outputs.append(np.empty((total, *list(shape.to_shape())[1:]), dtype) if known else [])
    return outputs


class OpenVinoBackend:
    """Converts modules through ONNX."""

    def prepare(self, model: nn.Module, method: Method, context: PrepareContext) -> OpenVinoRunner:
        """Convert, check against the module, and quantize if the method says so.

        Raises:
            YoloxError: When the processor lacks the precision, or the conversion changes the results.
        """
        from yolox.inference.convert.onnx_export import check_outputs, export_onnx

        hint = _hint(method)
        context.progress("exporting")
        path = context.work_dir / "model.onnx"
        export_onnx(model, context.sample, path, dynamic_batch=context.dynamic_batch)
        batch = context.fixed_batch
        runner = OpenVinoRunner(core().read_model(str(path)), Settings(context.threads), batch=batch)
        sample = context.small_sample(2)
        check_outputs(model, sample, runner(*sample))
        fast = replace(runner, settings=_best_guess(runner, context), hint=hint, _pools={})
        if method.precision is Precision.FP16:
            return replace(fast, model=_compressed(runner.model, context.work_dir / MODEL), compress=True, _pools={})
        if method.precision is not Precision.INT8:
            return fast

        def build(graph: Any) -> OpenVinoRunner:
            return replace(fast, model=graph, _pools={})

        return _with_share(build(quantize_openvino(runner.model, context, build)))

    def load(self, folder: Path, manifest: Manifest, module: nn.Module | None = None) -> OpenVinoRunner:
        """Load the model; torch is not needed.

        Raises:
            ModelFileError: When the files are absent or damaged.
        """
        path = folder / MODEL
        try:
            model = limited_time(lambda: core().read_model(str(path)), seconds_for(0))
        except RuntimeError as error:
            raise ModelFileError(f"'{path}' is not a readable OpenVINO model. Save the model again.") from error
        return OpenVinoRunner(
            model,
            manifest.settings,
            manifest.backend_data.get("hint", "f32"),
            manifest.fixed_batch,
            manifest.int8_share,
            bool(manifest.backend_data.get("compress", False)),
        )


def _hint(method: Method) -> str:
    """Return the precision of everything that is not int8.

    Raises:
        YoloxError: When this processor would only imitate it.
    """
    if method.precision is Precision.BF16 or method.options.get("rest") == "bf16":
        if "BF16" not in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise YoloxError(
                "this processor has no bf16 instructions, OpenVINO would compute in fp32. Use openvino_fp32."
            )
        return "bf16"
    # without fp16 units the weights are still stored in fp16, and computed with in fp32
    fp16 = method.precision is Precision.FP16 and "FP16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "f16" if fp16 else "f32"


def _compressed(graph: Any, path: Path) -> Any:
    """Return the model with weights rounded to fp16, as it will be after saving and loading."""
    openvino().save_model(graph, str(path), compress_to_fp16=True)
    return core().read_model(str(path))


def _best_guess(runner: OpenVinoRunner, context: PrepareContext) -> Settings:
    return runner.candidates(len(context.sample[0]), context.threads)[0]


def _with_share(runner: OpenVinoRunner) -> OpenVinoRunner:
    size = runner.batch or 1
    graph = runner._shaped(size, tuple(np.dtype(port.get_element_type().to_dtype()) for port in runner.model.inputs))
    return replace(runner, int8_share=int8_share(graph, runner.pool(size).compiled))


def int8_share(graph: Any, compiled: Any) -> float:
    """Return the share of multiply-accumulates that the compiled model runs in int8 kernels.

    Args:
        graph: The model with static shapes; it knows the sizes of the layers.
        compiled: What the CPU plugin made of it; it knows the kernel that it chose for each layer.
    """
    in_int8: set[str] = set()
    for node in compiled.get_runtime_model().get_ops():
        facts = node.get_rt_info()
        if str(facts["primitiveType"].astype(str)).lower().endswith("i8"):
            in_int8.update(str(facts["originalLayersNames"].astype(str)).split(","))
    total, int8 = 0, 0
    for node in graph.get_ops():
        if node.get_type_name() in HEAVY:
            macs = multiply_accumulates(node)
            total += macs
            int8 += macs if node.get_friendly_name() in in_int8 else 0
    return int8 / total if total else 0.0


BACKEND = OpenVinoBackend()
