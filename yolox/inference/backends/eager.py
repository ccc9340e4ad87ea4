"""Plain PyTorch: the module itself, in fp32 or under bf16 autocast, in either memory layout.

The artifact holds the module's weights alone (safetensors). Loading it runs no code but the module's own, which whoever
loads it brings along.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from yolox.errors import ModelFileError
from yolox.inference.artifacts.manifest import Manifest
from yolox.inference.backends.base import Method, PrepareContext, Runner, Settings
from yolox.inference.backends.torch_runner import FlatModule, TorchRunner, torch_sample
from yolox.inference.convert.folding import fold_normalisations
from yolox.precision_names import Precision

WEIGHTS = "weights.safetensors"
ORIGINAL = "original"


class EagerBackend:
    """Runs the module as it is."""

    def prepare(self, model: nn.Module, method: Method, context: PrepareContext) -> Runner:
        """Lay the module out for the method."""
        forced = bool(method.options.get("channels_last"))
        return _runner(
            model,
            method.name,
            torch_sample(context, 1),
            Settings(threads=context.threads, channels_last=forced),
            layouts=(True,) if forced else (False, True),
            autocast=method.precision is Precision.BF16,
            batch=context.fixed_batch,
        )

    def load(self, folder: Path, manifest: Manifest, module: nn.Module | None = None) -> Runner:
        """Put the weights into a copy of ``module``.

        Raises:
            ModelFileError: Without a module, or when the weights are not those of such a module.
        """
        if module is None:
            raise ModelFileError(
                f"'{folder}' holds the weights of a PyTorch module ({manifest.method}), whose code is not in it. Give "
                "the module: load(path, model), or choose a method whose model stands alone (openvino, onnxruntime)."
            )
        own = copy.deepcopy(module).eval()
        try:
            load_model(own, folder / WEIGHTS)
        except (RuntimeError, safetensors.SafetensorError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ModelFileError(f"the weights in '{folder}' do not fit the module: {reason}") from error
        rows = manifest.fixed_batch or 1
        sample = tuple(
            torch.zeros(rows, *shape[1:], dtype=getattr(torch, name))
            for shape, name in zip(manifest.input_shapes, manifest.input_dtypes, strict=True)
        )
        return _runner(
            FlatModule(own).eval(),
            manifest.method,
            sample,
            manifest.settings,
            layouts=(manifest.settings.channels_last,),
            autocast=manifest.precision == Precision.BF16.value,
            batch=manifest.fixed_batch,
        )


def _runner(
    model: nn.Module,
    method: str,
    sample: tuple[Tensor, ...],
    settings: Settings,
    *,
    layouts: tuple[bool, ...],
    autocast: bool,
    batch: int | None,
) -> TorchRunner:
    """Return the runner of a module in the form that is measured: folded, but for the original."""
    source = model.model if isinstance(model, FlatModule) else model
    measured = model if method == ORIGINAL else fold_normalisations(model, sample)

    def write(folder: Path, settings: Settings) -> Mapping[str, Any]:
        save_model(source, str(folder / WEIGHTS))
        return {}

    return TorchRunner(
        build=_layouts(lambda: copy.deepcopy(measured)),
        settings=settings,
        write=write,
        layouts=layouts,
        autocast=autocast,
        batch=batch,
        tunable=method != ORIGINAL,
    )


def _layouts(make: Callable[[], nn.Module]) -> Callable[[bool], Callable[..., tuple[Tensor, ...]]]:
    """Return a function that gives the module in a layout, each made once."""
    made: dict[bool, nn.Module] = {}

    def build(channels_last: bool) -> nn.Module:
        if channels_last not in made:
            layout = torch.channels_last if channels_last else torch.preserve_format
            made[channels_last] = make().to(memory_format=layout)  # type: ignore[call-overload]
        return made[channels_last]

    return build


BACKEND = EagerBackend()
