"""Intel's extension for PyTorch (IPEX) 2.8: packed weights and fused kernels, eager or as TorchScript.

It works with PyTorch 2.8 alone, so its methods usually run in another Python (``interpreter``), and a process that
loads one of its artifacts without having IPEX talks to such a Python through a socket (`RemoteRunner`), which costs
some milliseconds for each hundred megabytes.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from shutil import copyfile
from typing import Any

import torch
from torch import Tensor, nn

from yolox.cpu.ipex_location import INSTALL, import_ipex, locate_ipex
from yolox.errors import MissingDependencyError, YoloxError
from yolox.inference.artifacts.manifest import Manifest
from yolox.inference.backends.base import Array, Arrays, Method, PrepareContext, Runner, Settings, as_numpy, like_inputs
from yolox.inference.backends.torch_runner import Call, TorchRunner, flat_call, torch_sample
from yolox.inference.backends.torchscript import freeze_script, load_script, save_script, trace_module
from yolox.inference.convert.folding import fold_normalisations
from yolox.inference.runner_process import Batch, Failed, await_loaded, start_runner
from yolox.precision_names import Precision
from yolox.processes.start import ProcessFailure


class RemoteRunner:
    """The runner of an artifact whose library lives in another Python.

    Args:
        interpreter: The Python that has IPEX.
        folder: The artifact.
        manifest: Its manifest; ``settings`` may differ from the stored ones.

    Raises:
        ModelFileError: When the other process cannot load the artifact.
    """

    def __init__(self, interpreter: str, folder: Path, manifest: Manifest) -> None:
        self.settings = manifest.settings
        self.int8_share = manifest.int8_share
        self._interpreter, self._folder, self._manifest = interpreter, folder, manifest
        self._process = start_runner(folder, manifest.settings, interpreter)
        await_loaded(self._process, folder, interpreter)

    def __call__(self, *inputs: Array) -> Arrays:
        """Run one batch.

        Raises:
            YoloxError: When the model fails, or its process has ended.
        """
        self._process.send(Batch(0, tuple(as_numpy(array) for array in inputs)))
        try:
            answer = self._process.receive()
        except ProcessFailure as failure:
            raise YoloxError(f"{self._interpreter} {failure.reason}") from failure
        if isinstance(answer, Failed):
            raise YoloxError(f"the model failed in {self._interpreter}: {answer.reason}")
        return like_inputs(answer.arrays, inputs)

    def candidates(self, batch_size: int, threads: int) -> Sequence[Settings]:
        """Return the artifact's settings alone; they were tuned when it was made."""
        return (self.settings,)

    def configured(self, settings: Settings) -> RemoteRunner:
        """Return a runner in a process of its own with other settings."""
        return RemoteRunner(self._interpreter, self._folder, replace(self._manifest, settings=settings))

    def save(self, folder: Path) -> Mapping[str, Any]:
        """Copy the model's files."""
        for file in self._folder.iterdir():
            if file.name != "manifest.json" and file.is_file() and folder.resolve() != self._folder.resolve():
                copyfile(file, folder / file.name)
        return dict(self._manifest.backend_data)


def interpreter() -> str:
    """Return the Python that runs the methods of this back end.

    Raises:
        MissingDependencyError: When there is none.
        UsageError: When ``$YOLOX_IPEX_PYTHON`` names one that is of no use.
    """
    location = locate_ipex()
    if location.importable:
        return sys.executable
    if location.interpreter is None:
        raise MissingDependencyError("intel-extension-for-pytorch", INSTALL)
    return str(location.interpreter)


class IpexBackend:
    """Optimizes the module; the artifact is a TorchScript file in every case."""

    def prepare(self, model: nn.Module, method: Method, context: PrepareContext) -> Runner:
        """Fold normalisations, then let IPEX quantize or optimize, then trace if the method says so.

        Raises:
            MissingDependencyError: When IPEX cannot be imported in this process.
            YoloxError: When the processor cannot do what the method asks for.
        """
        ipex = import_ipex()
        half = method.precision is Precision.BF16
        if half and not ipex._C.onednn_has_bf16_support():
            raise YoloxError(
                "this processor has no AVX-512, without which IPEX computes nothing in bf16. Use fp32_ipex."
            )
        model = fold_normalisations(model, torch_sample(context, 1))
        share = None
        if method.precision is Precision.INT8:
            from yolox.inference.convert.quantizers.ipex_static import quantize_static

            optimized, share = quantize_static(ipex, model, context)
        else:
            optimized = ipex.optimize(model, dtype=torch.bfloat16 if half else torch.float32, inplace=True)
        traced = bool(method.options.get("jit"))
        forced = bool(method.options.get("channels_last"))
        scripts: dict[bool, Any] = {}

        def script(channels_last: bool) -> Any:
            if channels_last not in scripts:
                context.progress(f"tracing{' channels_last' if channels_last else ''}")
                scripts[channels_last] = trace_module(optimized, context, bf16=half, channels_last=channels_last)
            return scripts[channels_last]

        def write(folder: Path, settings: Settings) -> Mapping[str, Any]:
            save_script(script(settings.channels_last), folder)
            return {}

        return TorchRunner(
            build=lambda channels_last: _frozen(script(channels_last)) if traced else flat_call(optimized),
            settings=Settings(context.threads, channels_last=forced),
            write=write,
            layouts=(True,) if forced else (False, True),
            autocast=half and not traced,
            batch=context.fixed_batch,
            int8_share=share,
        )

    def load(self, folder: Path, manifest: Manifest, module: nn.Module | None = None) -> Runner:
        """Load the script, here or in a Python that has IPEX.

        Raises:
            ModelFileError: When it is damaged.
            MissingDependencyError: When no Python with IPEX can be found.
        """
        if not locate_ipex().importable:
            return RemoteRunner(interpreter(), folder, manifest)
        import_ipex()
        script = load_script(folder)
        call = _frozen(script) if manifest.options.get("jit") else _unfused(script)

        def write(target: Path, settings: Settings) -> Mapping[str, Any]:
            save_script(script, target)
            return {}

        return TorchRunner(
            build=lambda channels_last: call,
            settings=manifest.settings,
            write=write,
            layouts=(manifest.settings.channels_last,),
            batch=manifest.fixed_batch,
            int8_share=manifest.int8_share,
        )


def _frozen(script: Any) -> Call:
    """Return the script with its constants folded and IPEX's fusions, which compile in the first two runs."""
    return flat_call(freeze_script(copy.copy(script)))


def _unfused(script: Any) -> Call:
    """Return the script without the fusing executor: the very operations of the eager module."""
    call = flat_call(script)

    def plain(*inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined, no-untyped-call]
            return call(*inputs)

    return plain


BACKEND = IpexBackend()
