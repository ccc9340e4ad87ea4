"""TorchScript: traced and frozen, in fp32, bf16 or int8."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from yolox.errors import ModelFileError
from yolox.inference.artifacts.manifest import Manifest
from yolox.inference.backends.base import Method, PrepareContext, Runner, Settings
from yolox.inference.backends.torch_internals import inline_calls_
from yolox.inference.backends.torch_runner import TorchRunner, to_layout, torch_sample
from yolox.precision_names import Precision

SCRIPT = "model.torchscript"


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
            return _call(_frozen(scripts[channels_last]))

        return _runner(
            build, scripts, Settings(context.threads, channels_last=layouts[0]), layouts, context.fixed_batch, share
        )

    def load(self, folder: Path, manifest: Manifest, module: nn.Module | None = None) -> Runner:
        """Load the script and freeze it.

        Raises:
            ModelFileError: When it is absent or damaged.
        """
        layout = manifest.settings.channels_last
        path = folder / SCRIPT
        if not path.is_file():
            raise ModelFileError(f"'{path}' is missing from the artifact. Save the model again.")
        if manifest.precision == Precision.INT8.value:
            from yolox.inference.backends.int8_lowering import silence_quantize_warning

            silence_quantize_warning()
        try:
            with _without_deprecations():
                script = torch.jit.load(str(path))  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise ModelFileError(f"'{path}' is not a readable TorchScript file: {error}") from error
        batch = manifest.fixed_batch
        scripts = {layout: script}
        frozen = _call(_frozen(script))
        return _runner(lambda _: frozen, scripts, manifest.settings, (layout,), batch, manifest.int8_share)


def _runner(
    build: Callable[[bool], Callable[..., tuple[Tensor, ...]]],
    scripts: Mapping[bool, Any],
    settings: Settings,
    layouts: tuple[bool, ...],
    batch: int | None,
    share: float | None,
) -> TorchRunner:
    def write(folder: Path, settings: Settings) -> Mapping[str, Any]:
        with _without_deprecations():
            torch.jit.save(scripts[settings.channels_last], str(folder / SCRIPT))
        return {}

    return TorchRunner(build, settings, write, layouts=layouts, batch=batch, int8_share=share)


def _trace(model: nn.Module, method: Method, context: PrepareContext, channels_last: bool) -> Any:
    sample = tuple(to_layout(tensor, channels_last) for tensor in torch_sample(context, 2))
    with _without_deprecations():
        own = copy.deepcopy(model)
    if channels_last:
        own = own.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    bf16 = method.precision is Precision.BF16
    with (
        torch.no_grad(),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16, cache_enabled=False),
        _without_deprecations(),
    ):
        # the outputs are compared with the original's afterwards; what tracing fixes shows there
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        script = torch.jit.trace(own, sample, check_trace=False)  # type: ignore[no-untyped-call]
    inline_calls_(script)
    return script


def _frozen(script: Any) -> Any:
    with _without_deprecations():
        return torch.jit.freeze(script.eval())


@contextmanager
def _without_deprecations() -> Iterator[None]:
    """TorchScript says of every call that it is deprecated; the user asked for it by name.

    PyTorch's exported graphs say of a class in themselves that it will go.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _call(script: Any) -> Callable[..., tuple[Tensor, ...]]:
    def call(*inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = script(*inputs)
        return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)

    return call


BACKEND = JitBackend()
