"""Saved models (artifacts): a folder with ``manifest.json`` and the files of one back end. Nothing in it is a pickle.

Artifacts of OpenVINO, ONNX Runtime and our own 8-bit engine load and run without torch being installed.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolox.cpu.machine import read_machine
from yolox.errors import UsageError, YoloxError
from yolox.files import make_output_dir, refuse_inputs
from yolox.inference.artifacts.manifest import MANIFEST_NAME, Manifest, file_entries, read_manifest, write_manifest
from yolox.inference.artifacts.structure import unflatten
from yolox.inference.artifacts.trust import FORMATS, check_files, check_trust
from yolox.inference.backends import get_backend
from yolox.inference.backends.base import (
    Array,
    Arrays,
    GraphRunner,
    Runner,
    Settings,
    as_model_error,
    first_run,
    memory_for,
)
from yolox.kernels.int8.packing import sums_may_overflow

if TYPE_CHECKING:
    from torch import nn

_log = logging.getLogger(__name__)

_LIBRARIES = ("torch", "openvino", "nncf", "onnx", "onnxruntime", "torchao", "neural_compressor", "numpy")


@dataclass(frozen=True)
class AcceleratedModel:
    """A model ready to run: call it like the original with positional arrays, numpy or torch; it answers in kind.

    Args:
        runner: Runs the flat tuple of inputs.
        manifest: What it is.
        folder: Where its artifact lies, ``None`` when it was not saved yet.
        module: The original module; other processes need it where the artifact holds weights alone.
        untried: Holds an entry until a model that need not be trusted has run once, in limited memory.
    """

    runner: Runner
    manifest: Manifest
    folder: Path | None = None
    module: nn.Module | None = None
    untried: list[None] = field(default_factory=list, repr=False, compare=False)

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
        """Run one batch and return the flat tuple of outputs.

        Raises:
            UsageError: When number or shape of the inputs do not fit.
            ModelFileError: When what was loaded is no sound model.
        """
        self._check(inputs)
        if self.folder is None:
            return self.runner(*inputs)
        num_numbers = sum(math.prod(array.shape) for array in inputs)
        limit = memory_for(self.folder, num_numbers) if self.untried else None
        if self.untried and isinstance(self.runner, GraphRunner):
            outputs = first_run(self.folder, lambda: self.runner(*inputs), num_numbers, self.runner.stop)
        else:
            with as_model_error(self.folder, limit):
                outputs = self.runner(*inputs)
        self.untried.clear()
        return outputs

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
        folder: Created if need be; what an earlier model left in it is removed.
        metadata: Replaces the model's own.

    Raises:
        UsageError: When the folder holds other things than a model.
        YoloxError: When it cannot be written.
    """
    with _target(folder) as target:
        data = model.runner.save(target)
        manifest = replace(
            model.manifest,
            backend_data=data,
            settings=model.runner.settings,
            versions=_versions(),
            vnni=read_machine().has_vnni,
            files=file_entries(target),
        )
        return _finished(manifest, target, metadata)


def copy_artifact(source: Path, target: Path, metadata: Mapping[str, Any] | None = None) -> None:
    """Copy an artifact to ``target``, with other metadata if given.

    Raises:
        ModelFileError: When the source is not a whole artifact.
        UsageError: When the target holds other things than a model.
        YoloxError: When the target cannot be written.
        UsageError: When a file of the target is an input of this command.
    """
    manifest = read_manifest(source)
    check_files(source, manifest)
    if source.resolve() == target.resolve():
        _finished(manifest, target, metadata)
        return
    with _target(target) as folder:
        for name in manifest.files:
            shutil.copyfile(source / name, folder / name)
        _finished(manifest, folder, metadata)


def load_model(
    folder: Path | str, *, trust: bool = False, module: nn.Module | None = None, settings: Settings | None = None
) -> AcceleratedModel:
    """Load an artifact; nothing in it is executed unless ``trust`` says so (see ``artifacts.trust``).

    Args:
        folder: What ``save_model`` wrote.
        trust: Load programs (TorchScript, Inductor, IPEX) too: they can do whatever this user may.
        module: The original module, of any weights: artifacts of plain PyTorch hold its weights alone.
        settings: Run it with these instead of its own.

    Raises:
        ModelFileError: When the folder is no artifact, is damaged, needs trust, or does not fit the module.
        MissingDependencyError: When the library of its back end is missing.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    check_trust(folder, manifest, trust)
    check_files(folder, manifest)
    _warn_of_overflow(folder, manifest)
    manifest = manifest if settings is None else replace(manifest, settings=settings)
    backend = get_backend(manifest.backend)
    with as_model_error(folder, None if trust else memory_for(folder)):
        runner = backend.load(folder, manifest, module)
    return AcceleratedModel(runner, manifest, folder, module, [] if trust else [None])


def folder_size_mb(folder: Path) -> float:
    """Return the size of all files in ``folder`` in MB (10^6 bytes)."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


@contextmanager
def _target(folder: Path) -> Iterator[Path]:
    """Give a folder to write a model into, emptied of an earlier model.

    Raises:
        UsageError: When it holds files that no model has.
        YoloxError: When it cannot be written.
    """
    make_output_dir(folder)
    known = {MANIFEST_NAME, *(name for one in FORMATS.values() for name in one.files)}
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in known)
    if foreign:
        raise UsageError(f"'{folder}' holds '{foreign[0]}', which is no part of a model. Name a new or empty folder.")
    refuse_inputs(*folder.iterdir())
    try:
        for path in folder.iterdir():
            path.unlink()
        yield folder
    except OSError as error:
        raise _cannot_write(folder, error) from error


def _finished(manifest: Manifest, folder: Path, metadata: Mapping[str, Any] | None) -> Manifest:
    manifest = manifest if metadata is None else replace(manifest, metadata=dict(metadata))
    write_manifest(manifest, folder)
    return manifest


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
