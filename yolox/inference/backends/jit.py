"""TorchScript: traced and frozen, in fp32, bf16 or int8."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from yolox.inference.artifacts.manifest import Manifest
from yolox.inference.backends.base import Method, PrepareContext, Runner, Settings
from yolox.inference.backends.torch_internals import inline_calls_
from yolox.inference.backends.torch_runner import TorchRunner, flat_call
from yolox.inference.backends.torchscript import freeze_script, load_script, save_script, trace_module
from yolox.inference.convert.quiet import quiet
from yolox.precision_names import Precision


class JitBackend:
    """Traces the module in each memory layout that may be tried."""

    def prepare(self, model: nn.Module, method: Method, context: PrepareContext) -> Runner:
        """Quantize if the method says so, then trace."""
        share = None
        forced = bool(method.options.get("channels_last"))
        layouts = (True,) if forced else (False, True)
        if method.precision is Precision.INT8:
            from yolox.inference.backends.int8_lowering import lower_int8_, silence_quantize_warning
            from yolox.inference.convert.quantizers.pt2e import quantize_pt2e

            silence_quantize_warning()
            quantized, share = quantize_pt2e(model, context)
            model = lower_int8_(quantized)
            layouts = (True,)  # oneDNN's int8 convolutions answer in this layout
        scripts: dict[bool, Any] = {}

        def build(channels_last: bool) -> Callable[..., tuple[Tensor, ...]]:
            if channels_last not in scripts:
                context.progress(f"tracing{' channels_last' if channels_last else ''}")
                scripts[channels_last] = _trace(model, method, context, channels_last)
            return flat_call(freeze_script(scripts[channels_last]))

        return _runner(
            build, scripts, Settings(context.threads, channels_last=layouts[0]), layouts, context.fixed_batch, share
        )

    def load(self, folder: Path, manifest: Manifest, module: nn.Module | None = None) -> Runner:
        """Load the script and freeze it.

        Raises:
            ModelFileError: When it is damaged.
        """
        if manifest.precision == Precision.INT8.value:
            from yolox.inference.backends.int8_lowering import silence_quantize_warning

            silence_quantize_warning()
        script, layout = load_script(folder), manifest.settings.channels_last
        frozen = flat_call(freeze_script(script))
        return _runner(
            lambda _: frozen, {layout: script}, manifest.settings, (layout,), manifest.fixed_batch, manifest.int8_share
        )


def _runner(
    build: Callable[[bool], Callable[..., tuple[Tensor, ...]]],
    scripts: Mapping[bool, Any],
    settings: Settings,
    layouts: tuple[bool, ...],
    batch: int | None,
    share: float | None,
) -> TorchRunner:
    def write(folder: Path, settings: Settings) -> Mapping[str, Any]:
        save_script(scripts[settings.channels_last], folder)
        return {}

    return TorchRunner(build, settings, write, layouts=layouts, batch=batch, int8_share=share)


def _trace(model: nn.Module, method: Method, context: PrepareContext, channels_last: bool) -> Any:
    with quiet():  # PyTorch's exported graphs say of a class in themselves that it will go
        own = copy.deepcopy(model)
    if channels_last:
        own = own.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    script = trace_module(own, context, bf16=method.precision is Precision.BF16, channels_last=channels_last)
    inline_calls_(script)
    return script


BACKEND = JitBackend()
