"""Artifacts: a folder with ``manifest.json`` and the files of one back end. Nothing in it is a pickle.

Artifacts of OpenVINO and ONNX Runtime load and run without torch being installed.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from yolox.cpu.machine import read_machine
from yolox.errors import ModelFileError, UsageError, YoloxError
from yolox.files import make_output_dir, refuse_inputs, write_text
from yolox.inference.artifacts.structure import unflatten
from yolox.inference.backends import BACKENDS, get_backend
from yolox.inference.backends.base import Array, Arrays, Manifest, Runner, Settings
from yolox.kernels.int8.overflow import sums_may_overflow

__all__ = [
    "MANIFEST_NAME",
    "AcceleratedModel",
    "copy_artifact",
    "folder_size_mb",
    "load_manifest",
    "load_model",
    "load_runner",
    "save_model",
]

_log = logging.getLogger(__name__)

MANIFEST_NAME = "manifest.json"
FORMAT = 1
_LIBRARIES = ("torch", "openvino", "nncf", "onnx", "onnxruntime", "torchao", "neural_compressor", "numpy")


@dataclass(frozen=True)
class AcceleratedModel:
    """A model ready to run: call it like the original with positional arrays, numpy or torch; it answers in kind.

    Args:
        runner: Runs the flat tuple of inputs.
        manifest: What it is.
        folder: Where its artifact lies, ``None`` when it was not saved yet.
    """

    runner: Runner
    manifest: Manifest
    folder: Path | None = None

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The user's own values: classes, preprocessing and the like."""
        return self.manifest.metadata

    def __call__(self, *inputs: Array) -> Any:
        """Run one batch and return what the original returns (named tuples come back as plain tuples).

        Raises:
            UsageError: When number or shape of the inputs do not fit.
        """
        return unflatten(self.manifest.structure, self.run(*inputs))

    def run(self, *inputs: Array) -> Arrays:
        """Run one batch and return the flat tuple of outputs."""
        self._check(inputs)
        return self.runner(*inputs)

    def eval(self) -> AcceleratedModel:
        """Return itself: it is always in evaluation mode (for metrics written for modules)."""
        return self

    def train(self, mode: bool = True) -> AcceleratedModel:
        """Refuse: an accelerated model cannot be trained.

        Raises:
            UsageError: When ``mode`` is true.
        """
        if mode:
            raise UsageError("an accelerated model cannot be trained; train the original and optimize it again.")
        return self

    def _check(self, inputs: Arrays) -> None:
        shapes = self.manifest.input_shapes
        free = self.manifest.dynamic_batch
        fits = len(inputs) == len(shapes) and all(
            len(array.shape) == len(shape) and tuple(array.shape)[free:] == tuple(shape)[free:] and len(array) > 0
            for array, shape in zip(inputs, shapes, strict=True)
        )
        if not fits:
            arrived = ", ".join(str(tuple(array.shape)) for array in inputs)
            batch = ["B"] if free else []
            expected = ", ".join("(" + ", ".join([*batch, *map(str, shape[free:])]) + ")" for shape in shapes)
            raise UsageError(f"inputs of shape {arrived or 'none'} arrived, expected {expected}. Resize the input.")


def save_model(model: AcceleratedModel, folder: Path, metadata: Mapping[str, Any] | None = None) -> Manifest:
    """Write ``model`` into ``folder``, the manifest last, so that a folder with a manifest is whole.

    Args:
        model: The model.
        folder: Created if need be.
        metadata: Replaces the model's own.

    Raises:
        YoloxError: When the folder cannot be written.
    """
    make_output_dir(folder)
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    try:
        data = model.runner.save(folder)
    except OSError as error:
        raise _cannot_write(folder, error) from error
    manifest = replace(
        model.manifest,
        backend_data=data,
        settings=model.runner.settings,
        versions=_versions(),
        vnni=read_machine().has_vnni,
    )
    if metadata is not None:
        manifest = replace(manifest, metadata=dict(metadata))
    write_text(folder / MANIFEST_NAME, json.dumps({"format": FORMAT, **asdict(manifest)}, indent=2) + "\n")
    return manifest


def copy_artifact(source: Path, target: Path, metadata: Mapping[str, Any] | None = None) -> None:
    """Copy an artifact to ``target``, with other metadata if given.

    Raises:
        YoloxError: When the target cannot be written.
        UsageError: When a file of the target is an input of this command.
    """
    refuse_inputs(*(target / path.name for path in source.iterdir()))
    make_output_dir(target)
    document = _read_document(source)
    try:
        for path in source.iterdir():
            if path.name == MANIFEST_NAME:
                continue
            if path.is_dir():
                shutil.copytree(path, target / path.name, dirs_exist_ok=True)
            else:
                shutil.copyfile(path, target / path.name)
    except OSError as error:
        raise _cannot_write(target, error) from error
    if metadata is not None:
        document["metadata"] = dict(metadata)
    write_text(target / MANIFEST_NAME, json.dumps(document, indent=2) + "\n")


def load_manifest(folder: Path) -> Manifest:
    """Read ``manifest.json``.

    Raises:
        ModelFileError: When the folder is no artifact, or one of a newer format.
    """
    document = _read_document(folder)
    if document.pop("format", None) != FORMAT:
        raise ModelFileError(f"'{folder}' has an artifact format other than {FORMAT}. Save the model again.")
    try:
        document["settings"] = Settings(**document["settings"])
        document["input_shapes"] = tuple(tuple(shape) for shape in document["input_shapes"])
        document["input_dtypes"] = tuple(document["input_dtypes"])
        manifest = Manifest(**document)
    except (TypeError, KeyError) as error:
        raise ModelFileError(f"'{folder / MANIFEST_NAME}' is incomplete: {error}. Save the model again.") from error
    if manifest.backend not in BACKENDS:
        raise ModelFileError(f"'{folder}' needs the back end '{manifest.backend}'; known are {', '.join(BACKENDS)}.")
    return manifest


def load_model(folder: Path | str) -> AcceleratedModel:
    """Load an artifact.

    Raises:
        ModelFileError: When the folder is no artifact or is damaged.
        MissingDependencyError: When the library of its back end is missing.
    """
    folder = Path(folder)
    manifest = load_manifest(folder)
    _warn_of_overflow(folder, manifest)
    return AcceleratedModel(get_backend(manifest.backend).load(folder, manifest), manifest, folder)


def load_runner(folder: Path | str) -> Runner:
    """Load the bare runner of an artifact: flat tuple in, flat tuple out."""
    return load_model(folder).runner


def folder_size_mb(folder: Path) -> float:
    """Return the size of all files in ``folder`` in MB (10^6 bytes)."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def _read_document(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST_NAME
    if not path.is_file():
        what = "is not an artifact: it has no manifest.json" if folder.is_dir() else "does not exist"
        raise ModelFileError(f"'{folder}' {what}. Give a folder that InferenceOptimizer.save wrote.")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelFileError(f"'{path}' is damaged: {error}. Save the model again.") from error
    if not isinstance(document, dict):
        raise ModelFileError(f"'{path}' is damaged: it holds no JSON object. Save the model again.")
    return document


def _cannot_write(folder: Path, error: OSError) -> YoloxError:
    return YoloxError(f"cannot write the model to '{folder}': {error.strerror or error}. Free some space.")


def _warn_of_overflow(folder: Path, manifest: Manifest) -> None:
    """Our own kernels choose among exact ones; the libraries' saturate."""
    exact = manifest.precision != "int8" or manifest.backend == "native"
    if manifest.vnni and not exact and sums_may_overflow():
        _log.warning(
            "'%s' was made on a processor with VNNI, which this one lacks: sums of its 8-bit products may overflow, "
            "and its accuracy is not the one that was measured. Run the optimizer on this machine.",
            folder,
        )


def _versions() -> dict[str, str]:
    found = {}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found
