"""Intel's extension for PyTorch (IPEX) 2.8: packed weights and fused kernels, eager or as TorchScript.

It works with PyTorch 2.8 alone, so its methods usually run in another Python (``interpreter``), and a process that
loads one of its artifacts without having IPEX talks to such a Python (``ipex_remote``).
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from yolox.cpu.ipex_location import INSTALL, import_ipex, locate_ipex
from yolox.errors import MissingDependencyError, YoloxError
from yolox.inference.artifacts.manifest import Manifest
from yolox.inference.backends.base import Method, PrepareContext, Runner, Settings
from yolox.inference.backends.torch_runner import Call, TorchRunner, flat_call, torch_sample
from yolox.inference.backends.torchscript import freeze_script, load_script, save_script, trace_module
from yolox.inference.convert.folding import fold_normalisations
from yolox.precision_names import Precision


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
            from yolox.inference.backends.ipex_remote import RemoteRunner

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
