"""Checkpoints: read without executing anything, recognised, checked against the network, written in one step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yolox.class_names import COCO_NAMES, clean_name
from yolox.config import Experiment, ModelConfig, experiment_from_dict
from yolox.errors import ModelFileError, UsageError
from yolox.experiments import EXPERIMENTS
from yolox.models.detector import Detector, build_detector
from yolox.published_weights import find_checkpoint
from yolox.safe_weights import read_safetensors
from yolox.tables import shortened
from yolox.torch_files import read_torch_file

NEWEST_FORMAT = 1
_SAFE_TORCH = (2, 10)  # earlier ones can be made to write past the end of memory even with weights_only
_CLASS_KEY = "head.cls_preds.0.weight"


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
            lines.append(f"{len(shapes)} left out, other shape (file -> network): {shortened(shapes, 4)}")
        if self.missing:
            lines.append(f"{len(self.missing)} not in the file, freshly initialised: {shortened(self.missing, 4)}")
        if self.unused:
            lines.append(f"{len(self.unused)} in the file only, ignored: {shortened(self.unused, 4)}")
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


def read_checkpoint(path: str | Path, *, own_run: bool = False) -> dict[str, Any]:
    """Return the content of a checkpoint file; nothing in it is executed.

    Args:
        path: A ``.pth`` or ``.safetensors`` file, or the name of published weights.
        own_run: Whether it is a file of the run that goes on, which a PyTorch before 2.10 (that of IPEX) may open too.

    Raises:
        ModelFileError: When the file is missing, damaged, holds code to execute, or is no checkpoint.
    """
    file = find_checkpoint(path)
    if not file.is_file():
        state = "is a folder" if file.is_dir() else "does not exist"
        raise ModelFileError(
            f"checkpoint '{file}' {state}; expected a .pth file, or the name of published weights such as yolox_nano. "
            "Check the path."
        )
    if file.suffix != ".safetensors" and not own_run and _torch_version() < _SAFE_TORCH:
        raise ModelFileError(
            f"PyTorch {torch.__version__} reads damaged files past their end; '{file}' is not opened. In the main "
            "environment 'python -m yolox.tools.export -c FILE --output-name x.safetensors' writes its weights."
        )
    content = read_safetensors(file) if file.suffix == ".safetensors" else read_torch_file(file)
    if not isinstance(content, dict):
        raise ModelFileError(
            f"'{path}' holds {type(content).__name__}; expected a checkpoint, a dictionary with weights under 'model'."
        )
    return content


def _torch_version() -> tuple[int, ...]:
    return tuple(map(int, torch.__version__.split("+")[0].split(".")[:2]))


def weights_of(content: Mapping[str, Any], path: str | Path) -> dict[str, Tensor]:
    """Return the weights to deploy: those under ``model`` (ours and official), or the content itself if it is weights.

    Raises:
        ModelFileError: When there are none, or they are not finite.
    """
    for candidate in (content.get("model"), content.get("state_dict"), content):
        if not isinstance(candidate, Mapping):
            continue
        weights = {str(key).removeprefix("module."): value for key, value in candidate.items()}
        if getattr(weights.get(_CLASS_KEY), "ndim", 0) == 4 and all(
            isinstance(value, Tensor) for value in weights.values()
        ):
            check_weights(weights, path)
            return weights
    keys = ", ".join(map(str, list(content)[:5])) or "nothing"
    raise ModelFileError(
        f"'{path}' holds no YOLOX weights (found: {keys}); expected official keys such as '{_CLASS_KEY}', plain or "
        "under 'model'. Give a YOLOX checkpoint."
    )


def num_classes_of(weights: Mapping[str, Tensor]) -> int:
    """Return how many classes the weights of a YOLOX predict."""
    return int(weights[_CLASS_KEY].shape[0])


def check_weights(weights: Mapping[str, Any], path: str | Path) -> None:
    """Refuse tensors that are no weights, and NaN or infinite values: nothing computed with them is worth anything.

    Raises:
        ModelFileError: Naming the first such tensor.
    """
    for key, value in weights.items():
        if not isinstance(value, Tensor):
            continue
        if (value.layout, value.device.type) != (torch.strided, "cpu") or value.is_quantized or value.is_complex():
            kind = f"{value.dtype}, {value.layout}, {value.device}"
            raise ModelFileError(f"'{path}' holds a tensor in '{key}' that is no weight ({kind}). Give plain weights.")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ModelFileError(
                f"'{path}' claims {value.numel()} values in '{key}' and holds fewer. It is damaged; copy it again."
            )
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ModelFileError(
                f"'{path}' holds values in '{key}' that are not finite (NaN or infinite): the training that wrote it "
                "has diverged. Take an earlier checkpoint."
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
    num_classes = num_classes_of(weights)
    for experiment in EXPERIMENTS.values():
        config = replace(experiment.model, num_classes=num_classes)
        if _shapes(config) == shapes:
            return replace(experiment, model=config)
    raise ModelFileError(
        f"the weights in '{path}' ({len(shapes)} tensors, {num_classes} classes) are of none of the published models "
        f"({', '.join(EXPERIMENTS)}). Describe the network with -f EXPERIMENT.yaml."
    )


def _compare(weights: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> LoadReport:
    """Return how ``weights`` fit a network with tensors of these shapes."""
    theirs = {key: tuple(value.shape) for key, value in weights.items()}
    both = [key for key in theirs if key in shapes]
    return LoadReport(
        loaded=sum(theirs[key] == shapes[key] for key in both),
        missing=tuple(key for key in shapes if key not in theirs),
        unused=tuple(key for key in theirs if key not in shapes),
        mismatched=tuple((key, theirs[key], shapes[key]) for key in both if theirs[key] != shapes[key]),
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
    own = {key: tuple(value.shape) for key, value in detector.state_dict().items()}
    fitting = {key: value for key, value in weights.items() if own.get(key) == tuple(value.shape)}
    report = _compare(weights, own)
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
    count = num_classes_of(weights)
    if num_classes is not None and count != num_classes:
        raise ModelFileError(
            f"'{path}' predicts {count} classes, {num_classes} were expected. "
            "Use a data set with the classes of the model, or fine-tune it: yolox.tools.train -c."
        )
    own = own_experiment(content, path)
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
    report = _compare(weights, _shapes(chosen.model))
    if not report.complete:  # refused before the network takes memory
        raise ModelFileError(f"'{path}' does not fit {chosen.exp_name}: {report}\nGive the model that they belong to.")
    detector = build_detector(chosen.model)
    load_weights_(detector, weights, strict=True)
    return LoadedModel(chosen, class_names_of(content, count, path), detector.eval(), source, "class_names" in content)


def own_experiment(content: Mapping[str, Any], path: str | Path) -> Experiment | None:
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


def class_names_of(content: Mapping[str, Any], count: int, path: str | Path) -> tuple[str, ...]:
    """Return the names of a checkpoint's classes: its own, those of COCO for 80, or ``class 0``, ``class 1``, ...

    Raises:
        ModelFileError: When it names another number of classes than its weights have.
    """
    names = content.get("class_names")
    if isinstance(names, (list, tuple)):
        if len(names) != count:
            raise ModelFileError(f"'{path}' has weights for {count} classes but names {len(names)}. Train it again.")
        if not all(isinstance(name, str) and 0 < len(name) <= 1000 for name in names):
            raise ModelFileError(f"'{path}' names its classes by something else than text. It is damaged.")
        return tuple(map(clean_name, names))
    if count == len(COCO_NAMES):
        return COCO_NAMES
    return tuple(f"class {index}" for index in range(count))
