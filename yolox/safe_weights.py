"""Weights as safetensors: names, shapes and numbers, with what describes them as text; no format for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from yolox.config import Experiment, experiment_to_dict
from yolox.errors import ModelFileError
from yolox.files import atomic_path

_KEY, _FORMAT = "yolox", 1


def write_safetensors(
    path: Path,
    weights: Mapping[str, Tensor],
    experiment: Experiment | None = None,
    class_names: Sequence[str] | None = None,
) -> None:
    """Write weights by official keys, with their experiment and class names where they are known.

    Raises:
        YoloxError: When the file cannot be written.
    """
    described: dict[str, Any] = {"format": _FORMAT}
    if experiment is not None:
        described["experiment"] = experiment_to_dict(experiment)
    if class_names is not None:
        described["class_names"] = list(class_names)
    tensors = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt", _KEY: json.dumps(described)})


def read_safetensors(path: Path) -> dict[str, Any]:
    """Return the content of a file in the form of a checkpoint: weights under ``model``, and what describes them.

    Raises:
        ModelFileError: When the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            described = json.loads((file.metadata() or {}).get(_KEY, "{}"))
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"'{path}' cannot be read as safetensors: {str(error)[:160]}. Copy it again.") from error
    return {**(described if isinstance(described, dict) else {}), "model": weights}
