"""Save a module's weights and load them again, without pickled code."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from yolox.errors import ModelFileError, UsageError
from yolox.files import atomic_path, make_output_dir, write_text
from yolox.torch_files import read_torch_file

_WEIGHTS, _META, _KIND = "saved_weight.pt", "meta.json", "yolox-trainer-weights"
_log = logging.getLogger(__name__)


def save_module(model: nn.Module, path: str | Path) -> None:
    """Write the weights of ``model`` and a description of them into the folder ``path``.

    Raises:
        UsageError: When ``model`` is no module.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"Trainer.save got {type(model).__name__}; expected a torch.nn.Module.")
    folder = make_output_dir(Path(path))
    with atomic_path(folder / _WEIGHTS) as temporary:
        torch.save(model.state_dict(), temporary)
    meta = {"kind": _KIND, "format": 1, "class": f"{type(model).__module__}.{type(model).__qualname__}"}
    write_text(folder / _META, json.dumps(meta, indent=2) + "\n")


def load_module(path: str | Path, model: nn.Module | None, input_sample: Any, inplace: bool, device: Any) -> nn.Module:
    """Return a module with the weights of the folder ``path``.

    Args:
        path: Written by `save_module`.
        model: A module of the same structure; weights alone do not make one.
        input_sample: Not needed for weights; said so in the log.
        inplace: Fill ``model`` itself instead of a copy.
        device: Where to put it; None for the CPU.

    Raises:
        UsageError: When ``model`` is missing.
        ModelFileError: When the folder holds no such weights, or they do not fit.
    """
    folder = Path(path)
    if not (folder / _WEIGHTS).is_file():
        raise ModelFileError(f"'{folder}' has no file {_WEIGHTS}; expected a folder written by Trainer.save.")
    if model is None:
        raise UsageError("Trainer.load got no model; weights need the module that they belong to: load(path, model).")
    if input_sample is not None:
        _log.info("Trainer.load: input_sample is not needed for plain weights")
    state = read_torch_file(folder / _WEIGHTS)
    if not isinstance(state, dict):
        raise ModelFileError(f"'{folder / _WEIGHTS}' holds {type(state).__name__}; expected weights by name.")
    target = model if inplace else copy.deepcopy(model)
    try:
        target.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ModelFileError(f"the weights in '{folder}' do not fit {type(model).__name__}: {error}") from error
    return target.to(device) if device is not None else target
