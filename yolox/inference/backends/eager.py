"""Plain PyTorch: the module itself, in fp32 or under bf16 autocast, in either memory layout."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from yolox.inference.backends.base import Manifest, Method, Precision, PrepareContext, Runner, Settings
from yolox.inference.backends.torch_runner import (
    TorchRunner,
    export_program,
    load_program,
    program_module,
    save_program,
    torch_sample,
)
from yolox.inference.convert.folding import fold_normalisations

__all__ = ["BACKEND", "EagerBackend"]

PROGRAM = "model.pt2"


class EagerBackend:
    """Runs the module as it is; the artifact is an exported program."""

    def prepare(self, model: nn.Module, method: Method, context: PrepareContext) -> Runner:
        """Lay the module out for the method."""
        forced = bool(method.options.get("channels_last"))
        autocast = method.precision is Precision.BF16
        original = method.name == "original"
        if not original:
            model = fold_normalisations(model, torch_sample(context, 1 if context.dynamic_batch else None))
        return TorchRunner(
            build=_layouts(lambda: copy.deepcopy(model)),
            settings=Settings(threads=context.threads, channels_last=forced),
            write=_writer(model, context),
            layouts=(True,) if forced else (False, True),
            autocast=autocast,
            batch=None if context.dynamic_batch else len(context.sample[0]),
            tunable=not original,
        )

    def load(self, folder: Path, manifest: Manifest) -> Runner:
        """Load the exported program."""
        program = load_program(folder / PROGRAM)
        return TorchRunner(
            build=_layouts(lambda: program_module(program)),
            settings=manifest.settings,
            write=lambda target, _: _save(program, target),
            autocast=manifest.precision == Precision.BF16.value,
            batch=None if manifest.dynamic_batch else manifest.input_shapes[0][0],
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


def _writer(model: nn.Module, context: PrepareContext) -> Callable[[Path, Settings], Mapping[str, Any]]:
    return lambda folder, _: _save(export_program(model, context), folder)


def _save(program: torch.export.ExportedProgram, folder: Path) -> Mapping[str, Any]:
    save_program(program, folder / PROGRAM)
    return {}


BACKEND = EagerBackend()
