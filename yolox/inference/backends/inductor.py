"""TorchInductor, compiled ahead of time: one package of machine code and weights, loaded in milliseconds.

Weights are frozen into the package and pre-packed for oneDNN. The code fits CPUs with the instruction sets of the one
that compiled it; the manifest says which, and another CPU gets a clear refusal.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from yolox.errors import MissingDependencyError, ModelFileError, YoloxError
from yolox.inference.artifacts.manifest import Manifest
from yolox.inference.backends.base import Method, PrepareContext, Runner, Settings
from yolox.inference.backends.int8_lowering import strip_checks_
from yolox.inference.backends.torch_internals import compile_package, load_package
from yolox.inference.backends.torch_runner import TorchRunner, export_program, flat_call
from yolox.inference.convert.quiet import quiet
from yolox.precision_names import Precision
from yolox.temporary_folders import TemporaryFolder

PACKAGE = "model.pt2"
LARGEST_ERROR = 0.2
"""Of a compiled int8 program against the quantized network in float, as a share of the spread; rounding makes 0.01."""
_CACHE = "TORCHINDUCTOR_CACHE_DIR"
QUANTIZERS = {
    "pt2e": ("yolox.inference.convert.quantizers.pt2e", "quantize_pt2e"),
    "neural_compressor": ("yolox.inference.convert.quantizers.neural_compressor", "quantize_static"),
}


class _Autocast(nn.Module):
    """Runs a module under bf16 autocast, so that an export holds the casts."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast("cpu", torch.bfloat16):
            outputs: tuple[Tensor, ...] = self.module(*inputs)
        return tuple(output.float() if output.dtype is torch.bfloat16 else output for output in outputs)


class InductorBackend:
    """Compiles fp32, bf16 and int8 models."""

    def prepare(self, model: nn.Module, method: Method, context: PrepareContext) -> Runner:
        """Quantize if the method says so, then compile."""
        _need_compiler()
        share = None
        if method.precision is Precision.INT8:
            module, function = QUANTIZERS[method.options["quantizer"]]
            quantized, share = getattr(import_module(module), function)(model, context)
            strip_checks_(quantized)
            model = quantized
        if method.precision is Precision.BF16 or method.options.get("rest") == "bf16":
            model = _Autocast(model)
        context.progress("compiling")
        # not in work_dir, which goes before the runner saves the package
        folder = TemporaryFolder(method.name, context.work_dir.parent)
        package = _compile(model, context, folder.path / PACKAGE)
        runner = _runner(package, Settings(threads=context.threads), context.fixed_batch, share)
        weakref.finalize(runner.write, folder.remove)
        if method.precision is Precision.INT8:
            _check(runner, model, context)
        return runner

    def load(self, folder: Path, manifest: Manifest, module: nn.Module | None = None) -> Runner:
        """Load the package.

        Raises:
            ModelFileError: When it was compiled for another kind of CPU.
        """
        package = folder / PACKAGE
        compiled_for = manifest.backend_data.get("cpu_capability")
        if compiled_for != torch.backends.cpu.get_cpu_capability():
            raise ModelFileError(
                f"'{folder}' was compiled for {compiled_for}, this CPU has "
                f"{torch.backends.cpu.get_cpu_capability()}. Run the optimizer on this machine."
            )
        return _runner(package, manifest.settings, manifest.fixed_batch, manifest.int8_share)


def _compile(model: nn.Module, context: PrepareContext, target: Path) -> Path:
    program = export_program(model, context.sample, context.dynamic_batch)
    with torch.no_grad(), quiet(), _own_cache():
        return compile_package(program, target)


@contextmanager
def _own_cache() -> Iterator[None]:
    """Keep the compiler's files in a folder that goes with this process, unless the user has named one."""
    before = os.environ.get(_CACHE)
    if before is not None and not _is_default_cache(Path(before)):
        yield
        return
    os.environ[_CACHE] = str(_cache_folder().path)
    try:
        yield
    finally:
        if before is None:
            del os.environ[_CACHE]
        else:
            os.environ[_CACHE] = before


def _is_default_cache(folder: Path) -> bool:
    """Return whether PyTorch itself has chosen this folder: it writes its choice into the variable."""
    return folder.parent == Path(tempfile.gettempdir()) and folder.name.startswith("torchinductor_")


@cache
def _cache_folder() -> TemporaryFolder:
    return TemporaryFolder("inductor")


def _check(runner: TorchRunner, model: nn.Module, context: PrepareContext) -> None:
    """Compare the program with the quantized network that it was made of: some layers were compiled wrongly.

    Raises:
        YoloxError: When it computes something else.
    """
    rows = context.sample if not context.dynamic_batch else tuple(array[:2] for array in context.sample)
    with torch.no_grad():
        expected = model(*(torch.from_numpy(np.array(array)) for array in rows))
    for number, (ours, theirs) in enumerate(zip(runner(*rows), expected, strict=True)):
        reference = theirs.numpy().astype(np.float64)
        error = float(np.linalg.norm(ours - reference))
        spread = float(np.linalg.norm(reference - reference.mean()))
        if not error <= LARGEST_ERROR * spread + 1e-6 * float(np.linalg.norm(reference)):
            raise YoloxError(
                f"PyTorch's compiler made a wrong int8 program: output {number} differs from that of the quantized "
                f"network by {error / max(spread, 1e-12):.0%} of its spread. Use another method."
            )


def _runner(package: Path, settings: Settings, batch: int | None, share: float | None) -> TorchRunner:
    compiled = load_package(package)
    call = flat_call(lambda *inputs: compiled(*(tensor.contiguous() for tensor in inputs)))

    def write(folder: Path, settings: Settings) -> Mapping[str, Any]:
        shutil.copyfile(package, folder / PACKAGE)
        return {"cpu_capability": torch.backends.cpu.get_cpu_capability()}

    return TorchRunner(lambda _: call, settings, write, batch=batch, int8_share=share)


def _need_compiler() -> None:
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise MissingDependencyError(f"a C++ compiler ('{compiler}')", "apt-get install g++")


BACKEND = InductorBackend()
