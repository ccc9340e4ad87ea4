"""TorchScript, as the back ends ``jit`` and ``ipex`` use it: a traced program, its constants folded, in a file.

PyTorch says of every call that it is deprecated; the user asked for it by name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from yolox.errors import ModelFileError
from yolox.inference.backends.base import PrepareContext
from yolox.inference.backends.torch_runner import to_layout, torch_sample
from yolox.inference.convert.quiet import quiet

SCRIPT = "model.torchscript"


def trace_module(model: nn.Module, context: PrepareContext, *, bf16: bool, channels_last: bool) -> Any:
    """Return the program of ``model`` for a layout, under bf16 autocast if asked.

    What tracing fixes shows afterwards, when the outputs are compared with the original's.
    """
    sample = tuple(to_layout(tensor, channels_last) for tensor in torch_sample(context, 2))
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=bf16, cache_enabled=False)
    with torch.no_grad(), autocast, quiet():
        return torch.jit.trace(model, sample, check_trace=False)  # type: ignore[no-untyped-call]


def freeze_script(script: Any) -> Any:
    """Return the program with its weights as constants."""
    with quiet():
        return torch.jit.freeze(script.eval())


def save_script(script: Any, folder: Path) -> None:
    """Write what `load_script` reads."""
    with quiet():
        torch.jit.save(script, str(folder / SCRIPT))


def load_script(folder: Path) -> Any:
    """Return the program of an artifact.

    Raises:
        ModelFileError: When it is damaged.
    """
    path = folder / SCRIPT
    try:
        with quiet():
            return torch.jit.load(str(path))  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise ModelFileError(f"'{path}' is not a readable TorchScript file: {error}") from error
