"""Checkpoints: read without executing anything, recognised, checked against the network, written in one step."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from yolox.class_names import COCO_NAMES
from yolox.config import Experiment, ModelConfig, experiment_from_dict
from yolox.errors import ModelFileError, UsageError
from yolox.experiments import EXPERIMENTS
from yolox.files import atomic_path
from yolox.models.detector import Detector, build_detector
from yolox.published_weights import find_checkpoint

__all__ = [
    "LoadReport",
    "LoadedModel",
    "load_model",
    "load_weights_",
    "read_checkpoint",
    "recognise",
    "save_checkpoint",
    "weights_of",
]

NEWEST_FORMAT = 1
_CLASS_KEY = "head.cls_preds.0.weight"
_ZIP_START = b"PK\x03\x04"

_build_scalar = np.float64(0).__reduce__()[0]
_NUMPY_SCALARS: list[Any] = [
    # official training stores best_ap as a NumPy scalar; these build numbers and nothing else
    (_build_scalar, "numpy.core.multiarray.scalar"),
    (_build_scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    type(np.dtype(np.float64)),
    type(np.dtype(np.float32)),
    type(np.dtype(np.int64)),
]


@dataclass(frozen=True)
class LoadReport:
    """What loading by name and shape did.

    Args:
        loaded: Number of tensors taken over.
        missing: Keys of the network that the file lacks; they keep their fresh values.
        unused: Keys of the file that the network lacks.
        mismatched: Keys of both, with the shape in the file and the shape in the network.
    """

    loaded: int
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]

    @property
    def complete(self) -> bool:
        """Whether every tensor on both sides found its partner."""
        return not (self.missing or self.unused or self.mismatched)

    def __str__(self) -> str:
        """Return the report as lines for a log."""
        lines = [f"{self.loaded} tensors loaded"]
        if self.mismatched:
            shapes = [f"{key} {list(theirs)} -> {list(ours)}" for key, theirs, ours in self.mismatched]
            lines.append(f"{len(shapes)} left out, other shape (file -> network): {_some(shapes)}")
        if self.missing:
            lines.append(f"{len(self.missing)} not in the file, freshly initialised: {_some(self.missing)}")
        if self.unused:
            lines.append(f"{len(self.unused)} in the file only, ignored: {_some(self.unused)}")
        return "\n".join(lines)


@dataclass(frozen=True)
class LoadedModel:
    """A detector from a file, and what the file says of it.

    Args:
        experiment: With the model configuration and class count of the weights.
        class_names: In the order of the class indices.
        detector: In evaluation mode, float32.
        source: One line: where it comes from and how it was recognised.
        has_own_names: Whether the file itself names its classes; 80 classes without names are called as in COCO.
    """

    experiment: Experiment
    class_names: tuple[str, ...]
    detector: Detector
    source: str
    has_own_names: bool


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Return the content of a checkpoint file; nothing in it is executed.

    Tensors are mapped from the file where its format allows, so weights that are not used cost no memory.

    Raises:
        ModelFileError: When the file is missing, truncated, holds code to execute, or is no checkpoint.
    """
    file = find_checkpoint(path)
    if not file.is_file():
        state = "is a folder" if file.is_dir() else "does not exist"
        raise ModelFileError(
            f"checkpoint '{file}' {state}; expected a .pth file, or the name of published weights such as yolox_nano. "
            "Check the path."
        )
    with file.open("rb") as handle:
        zipped = handle.read(4) == _ZIP_START
    if file.stat().st_size == 0 or (zipped and not zipfile.is_zipfile(file)):
        raise ModelFileError(
            f"checkpoint '{file}' is truncated ({file.stat().st_size} bytes). Copy or download it again, "
            "or use an earlier checkpoint."
        )
    try:
        with torch.serialization.safe_globals(_NUMPY_SCALARS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on foreign formats; what cannot be read is refused below
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # a damaged file can make the unpickler fail in any way
        raise ModelFileError(_why_unreadable(file, error)) from error
    if not isinstance(content, dict):
        raise ModelFileError(
            f"'{file}' holds {type(content).__name__}; expected a checkpoint, a dictionary with weights under 'model'."
        )
    return content


def _why_unreadable(file: Path, error: Exception) -> str:
    text = str(error)
    if "GLOBAL" in text.upper() and "weights" in text.lower():
        refused = next((line.strip() for line in text.splitlines() if "GLOBAL" in line.upper()), "")
        return (
            f"checkpoint '{file}' holds code to execute, which is never run here ({refused[:160]}). "
            "Save its plain weights with torch.save({'model': model.state_dict()}) where you trust it."
        )
    return (
        f"'{file}' cannot be read as a checkpoint ({(text.splitlines() or [type(error).__name__])[0][:160]}). "
        "It is truncated or no PyTorch file; copy it again or give another file."
    )


def save_checkpoint(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint in one step: a run killed at any moment leaves the old file or the new one.

    Raises:
        YoloxError: When the disk is full or the place cannot be written.
    """
    with atomic_path(Path(path)) as temporary:
        torch.save(dict(content), temporary)


def weights_of(content: Mapping[str, Any], path: str | Path) -> dict[str, Tensor]:
    """Return the weights to deploy: those under ``model`` (ours and official), or the content itself if it is weights.

    Raises:
        ModelFileError: When there are none.
    """
    for candidate in (content.get("model"), content.get("state_dict"), content):
        if not isinstance(candidate, Mapping):
            continue
        weights = {str(key).removeprefix("module."): value for key, value in candidate.items()}
        if _CLASS_KEY in weights and all(isinstance(value, Tensor) for value in weights.values()):
            return weights
    keys = ", ".join(map(str, list(content)[:5])) or "nothing"
    raise ModelFileError(
        f"'{path}' holds no YOLOX weights (found: {keys}); expected official keys such as '{_CLASS_KEY}', plain or "
        "under 'model'. Give a YOLOX checkpoint."
    )


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        detector = build_detector(config)
    return {key: tuple(value.shape) for key, value in detector.state_dict().items()}


def recognise(weights: Mapping[str, Tensor], path: str | Path) -> Experiment:
    """Return the published experiment whose network has exactly the names and shapes of ``weights``.

    Raises:
        ModelFileError: When none of them fits.
    """
    shapes = {key: tuple(value.shape) for key, value in weights.items()}
    num_classes = shapes[_CLASS_KEY][0]
    for experiment in EXPERIMENTS.values():
        config = replace(experiment.model, num_classes=num_classes)
        if _shapes(config) == shapes:
            return replace(experiment, model=config)
    raise ModelFileError(
        f"the weights in '{path}' ({len(shapes)} tensors, {num_classes} classes) are of none of the published models "
        f"({', '.join(EXPERIMENTS)}). Describe the network with -f EXPERIMENT.yaml."
    )


def load_weights_(detector: Detector, weights: Mapping[str, Tensor], *, strict: bool = False) -> LoadReport:
    """Copy into ``detector`` every tensor of ``weights`` that agrees in name and shape, and report the rest.

    Args:
        detector: The network to change.
        weights: By official keys, of any floating type.
        strict: Refuse instead of leaving anything out; the detector then stays as it was.

    Raises:
        ModelFileError: When ``strict`` and something does not fit, or when nothing fits at all.
    """
    own = detector.state_dict()
    fitting = {key: value for key, value in weights.items() if key in own and value.shape == own[key].shape}
    report = LoadReport(
        loaded=len(fitting),
        missing=tuple(key for key in own if key not in weights),
        unused=tuple(key for key in weights if key not in own),
        mismatched=tuple(
            (key, tuple(value.shape), tuple(own[key].shape))
            for key, value in weights.items()
            if key in own and key not in fitting
        ),
    )
    if strict and not report.complete:
        raise ModelFileError(f"the weights do not fit the network: {report}\nGive the model that they belong to.")
    if not fitting:
        raise ModelFileError("no tensor of the file fits the network. Give a checkpoint of the same model family.")
    detector.load_state_dict(fitting, strict=False)
    return report


def load_model(path: str | Path, experiment: Experiment | None = None, num_classes: int | None = None) -> LoadedModel:
    """Return the detector in a checkpoint, ready for evaluation.

    Our checkpoints describe themselves; official ones are recognised by the shapes of their weights.

    Args:
        path: A checkpoint of this package, an official one, or plain weights.
        experiment: What the user asked for; the class count follows the weights. None takes the file's own.
        num_classes: The number of classes that is needed; None accepts any.

    Raises:
        ModelFileError: When the file cannot be read or the weights fit neither experiment nor class count.
    """
    content = read_checkpoint(path)
    weights = weights_of(content, path)
    count = int(weights[_CLASS_KEY].shape[0])
    if num_classes is not None and count != num_classes:
        raise ModelFileError(
            f"'{path}' predicts {count} classes, {num_classes} were expected. "
            "Use a data set with the classes of the model, or fine-tune it: yolox.tools.train -c."
        )
    own = _own_experiment(content, path)
    if own is not None:
        source = f"'{path}': {own.exp_name}, {count} classes"
    else:
        source = f"'{path}': weights without description"
    if experiment is None and own is None:
        own = recognise(weights, path)
        source = f"'{path}': recognised by its shapes as {own.exp_name}, {count} classes"
    chosen = experiment or own
    assert chosen is not None
    chosen = replace(chosen, model=replace(chosen.model, num_classes=count))
    detector = build_detector(chosen.model)
    try:
        load_weights_(detector, weights, strict=True)
    except ModelFileError as error:
        raise ModelFileError(f"'{path}' does not fit {chosen.exp_name}: {error}") from error
    return LoadedModel(chosen, _class_names(content, count, path), detector.eval(), source, "class_names" in content)


def _own_experiment(content: Mapping[str, Any], path: str | Path) -> Experiment | None:
    """Return the experiment that one of our checkpoints describes, or None for a foreign file.

    Where its run wrote its files is left out: what a file says never decides where files go.
    """
    described = content.get("experiment")
    if not isinstance(described, Mapping):
        return None
    version = content.get("format")
    if not isinstance(version, int) or version > NEWEST_FORMAT:
        raise ModelFileError(
            f"'{path}' has checkpoint format {version!r}, this version reads up to {NEWEST_FORMAT}. Update yolox-cpu."
        )
    try:
        return replace(experiment_from_dict(described), output_dir=Experiment("").output_dir)
    except UsageError as error:
        raise ModelFileError(f"'{path}' describes an experiment that this version cannot read: {error}") from error


def _class_names(content: Mapping[str, Any], count: int, path: str | Path) -> tuple[str, ...]:
    names = content.get("class_names")
    if isinstance(names, (list, tuple)):
        if len(names) != count:
            raise ModelFileError(f"'{path}' has weights for {count} classes but names {len(names)}. Train it again.")
        return tuple(str(name) for name in names)
    if count == len(COCO_NAMES):
        return COCO_NAMES
    return tuple(f"class {index}" for index in range(count))


def _some(items: tuple[str, ...] | list[str], most: int = 4) -> str:
    rest = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + rest
