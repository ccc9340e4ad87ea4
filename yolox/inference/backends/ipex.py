"""Intel's extension for PyTorch (IPEX) 2.8: packed weights and fused kernels, eager or as TorchScript.

It works with PyTorch 2.8 alone, so its methods usually run in another Python (``interpreter``), and a process that
loads one of its artifacts without having IPEX talks to such a Python (``ipex_remote``).
"""

from __future__ import annotations

import copy
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from yolox.cpu.ipex_location import INSTALL, locate_ipex
from yolox.errors import MissingDependencyError, ModelFileError
from yolox.inference.backends.base import Manifest, Method, Precision, PrepareContext, Runner, Settings
from yolox.inference.backends.torch_runner import TorchRunner, to_layout, torch_sample

__all__ = ["BACKEND", "IpexBackend", "interpreter"]

SCRIPT = "model.torchscript"
Call = Callable[..., tuple[Tensor, ...]]


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
        """
        ipex = _import_ipex()
        with as_for_conversion():
            fold_normalisations_(model, torch_sample(context, 1 if context.dynamic_batch else None))
        share = None
        half = method.precision is Precision.BF16
        if method.precision is Precision.INT8:
            from yolox.inference.quantizers.ipex_static import quantize_static

            optimized, share = quantize_static(ipex, model, context)
        else:
            optimized = ipex.optimize(model, dtype=torch.bfloat16 if half else torch.float32, inplace=True)
        traced = bool(method.options.get("jit"))
        forced = bool(method.options.get("channels_last"))
        scripts: dict[bool, Any] = {}

        def script(channels_last: bool) -> Any:
            if channels_last not in scripts:
                context.progress(f"tracing{' channels_last' if channels_last else ''}")
                scripts[channels_last] = _trace(optimized, context, half, channels_last)
            return scripts[channels_last]

        def write(folder: Path, settings: Settings) -> Mapping[str, Any]:
            torch.jit.save(script(settings.channels_last), str(folder / SCRIPT))
            return {}

        return TorchRunner(
            build=lambda channels_last: _frozen(script(channels_last)) if traced else _flat(optimized),
            settings=Settings(context.threads, channels_last=forced),
            write=write,
            layouts=(True,) if forced else (False, True),
            autocast=half and not traced,
            batch=None if context.dynamic_batch else len(context.sample[0]),
            int8_share=share,
        )

    def load(self, folder: Path, manifest: Manifest) -> Runner:
        """Load the script, here or in a Python that has IPEX.

        Raises:
            ModelFileError: When it is absent or damaged.
            MissingDependencyError: When no Python with IPEX can be found.
        """
        path = folder / SCRIPT
        if not path.is_file():
            raise ModelFileError(f"'{path}' is missing from the artifact. Save the model again.")
        if not locate_ipex().importable:
            from yolox.inference.backends.ipex_remote import RemoteRunner

            return RemoteRunner(interpreter(), folder, manifest)
        _import_ipex()
        try:
            script = torch.jit.load(str(path))  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise ModelFileError(f"'{path}' is not a readable TorchScript file: {error}") from error
        call = _frozen(script) if manifest.options.get("jit") else _unfused(script)

        def write(target: Path, settings: Settings) -> Mapping[str, Any]:
            torch.jit.save(script, str(target / SCRIPT))
            return {}

        return TorchRunner(
            build=lambda channels_last: call,
            settings=manifest.settings,
            write=write,
            layouts=(manifest.settings.channels_last,),
            batch=None if manifest.dynamic_batch else manifest.input_shapes[0][0],
            int8_share=manifest.int8_share,
        )


@contextmanager
def as_for_conversion() -> Iterator[None]:
    """Have models show the form they keep for conversions, as ``torch.export`` does; tracing shows it by itself."""
    with mock.patch.object(torch.compiler, "_is_compiling_flag", True):
        yield


def fold_normalisations_(model: nn.Module, sample: tuple[Tensor, ...]) -> None:
    """Fold each BatchNorm that directly follows a convolution into it.

    IPEX does that by symbolic tracing, which fails for most detectors. Here one run shows what follows what. A result
    that differs would show in the comparison with the original that every method goes through.
    """
    sources: dict[int, tuple[nn.Module, Tensor]] = {}  # keeps the outputs alive, so that no id is used twice
    pairs: list[tuple[Any, Any]] = []
    uses: dict[nn.Module, int] = {}

    def leave(part: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        sources[id(output)] = (part, output)
        uses[part] = uses.get(part, 0) + 1

    def enter(part: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        uses[part] = uses.get(part, 0) + 1
        if id(inputs[0]) in sources:
            pairs.append((sources[id(inputs[0])][0], part))

    hooks = [part.register_forward_hook(leave) for part in model.modules() if type(part) is nn.Conv2d]
    hooks += [part.register_forward_pre_hook(enter) for part in model.modules() if type(part) is nn.BatchNorm2d]
    try:
        with torch.no_grad():
            model(*sample)
    finally:
        for hook in hooks:
            hook.remove()
    replacements: dict[nn.Module, nn.Module] = {}
    for convolution, normalisation in pairs:
        if uses[convolution] == uses[normalisation] == 1:
            replacements[convolution] = torch.nn.utils.fuse_conv_bn_eval(convolution, normalisation)
            replacements[normalisation] = nn.Identity()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child in replacements:
                parent.add_module(name, replacements[child])


def _trace(model: nn.Module, context: PrepareContext, half: bool, channels_last: bool) -> Any:
    rows = min(2, len(context.sample[0])) if context.dynamic_batch else None
    sample = tuple(to_layout(tensor, channels_last) for tensor in torch_sample(context, rows))
    with (
        torch.no_grad(),
        torch.autocast("cpu", torch.bfloat16, enabled=half, cache_enabled=False),
        warnings.catch_warnings(),
    ):
        # the outputs are compared with the original's afterwards; what tracing fixes shows there
        warnings.simplefilter("ignore")
        return torch.jit.trace(model, sample, check_trace=False)  # type: ignore[no-untyped-call]


def _frozen(script: Any) -> Call:
    """Return the script with its constants folded and IPEX's fusions, which compile in the first two runs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frozen = torch.jit.freeze(copy.copy(script).eval())
    return _flat(frozen)


def _unfused(script: Any) -> Call:
    """Return the script without the fusing executor: the very operations of the eager module."""
    call = _flat(script)

    def plain(*inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined, no-untyped-call]
            return call(*inputs)

    return plain


def _flat(module: Callable[..., Any]) -> Call:
    def call(*inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = module(*inputs)
        return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)

    return call


def _import_ipex() -> Any:
    location = locate_ipex()
    if not location.importable:  # importing it beside another PyTorch would end the process
        raise MissingDependencyError("intel-extension-for-pytorch in this Python", INSTALL)
    import intel_extension_for_pytorch as ipex

    logging.getLogger("IPEX").setLevel(logging.ERROR)  # it announces a next release that will never come
    warnings.filterwarnings("ignore", message="JIT pass will be deprecated", category=UserWarning)
    return ipex


BACKEND = IpexBackend()
