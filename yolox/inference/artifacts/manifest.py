"""The manifest of an artifact: what the saved model is, which files belong to it, and their checksums."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from yolox.errors import ModelFileError
from yolox.files import sha256_of, write_text
from yolox.inference.artifacts.structure import num_leaves
from yolox.inference.backends.base import Settings
from yolox.precision_names import Precision

MANIFEST_NAME = "manifest.json"
FORMAT = 2
MAX_BYTES = 16 * 1024**2
MAX_NUMBERS = 2**27
"""Numbers in one image, or in a batch of fixed size, at most: a stranger's model shall not take all memory."""
_DTYPES = ("float32", "float64", "float16", "uint8", "int8", "int32", "int64", "bool")


@dataclass(frozen=True)
class Manifest:
    """What an artifact says of itself; the content of ``manifest.json``.

    Args:
        method: Name of the method.
        backend: Key of ``backends.BACKENDS``.
        precision: Value of ``Precision``.
        options: ``Method.options``.
        settings: Settings to run with.
        input_shapes: Shape of each input of the sample, batch included.
        input_dtypes: numpy names of the inputs' types.
        num_outputs: Length of the flat tuple that the runner returns.
        dynamic_batch: Whether other batch sizes than the sample's are accepted.
        int8_share: See ``Runner``.
        backend_data: The JSON values that ``Runner.save`` returned.
        structure: How the flat outputs fold into what the model returned.
        metadata: The user's own JSON values (classes, preprocessing ...).
        versions: Versions of the libraries that wrote the artifact.
        vnni: Whether it was made where sums of 8-bit products have 32 bits; elsewhere they may overflow.
        files: Size in bytes and SHA-256 of each file beside the manifest, by name.
    """

    method: str
    backend: str
    precision: str
    options: Mapping[str, Any]
    settings: Settings
    input_shapes: tuple[tuple[int, ...], ...]
    input_dtypes: tuple[str, ...]
    num_outputs: int
    dynamic_batch: bool = True
    int8_share: float | None = None
    backend_data: Mapping[str, Any] = field(default_factory=dict)
    structure: Any = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    vnni: bool = False
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def fixed_batch(self) -> int | None:
        """The only batch size that is accepted, or ``None`` for any."""
        return None if self.dynamic_batch else self.input_shapes[0][0]


def file_entries(folder: Path) -> dict[str, dict[str, Any]]:
    """Return size and SHA-256 of every file in ``folder`` but the manifest, by name."""
    return {path.name: file_entry(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST_NAME}


def file_entry(path: Path) -> dict[str, Any]:
    """Return size in bytes and SHA-256 of a file."""
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write ``manifest.json``, in one step.

    Raises:
        YoloxError: When it cannot be written.
    """
    text = json.dumps({"format": FORMAT, **asdict(manifest)}, indent=2) + "\n"
    write_text(folder / MANIFEST_NAME, text)


def read_manifest(folder: Path) -> Manifest:
    """Read ``manifest.json`` and check each of its values.

    Raises:
        ModelFileError: When the folder is no artifact, one of another format, or holds a value that cannot be.
    """
    path = folder / MANIFEST_NAME
    document = _read_document(folder)
    if document.pop("format", None) != FORMAT:
        raise ModelFileError(f"'{folder}' has an artifact format other than {FORMAT}. Save the model again.")
    try:
        document["settings"] = _settings(document["settings"])
        document["input_shapes"] = tuple(_shape(shape) for shape in document["input_shapes"])
        document["input_dtypes"] = tuple(document["input_dtypes"])
        manifest = Manifest(**document)
        _check_values(manifest)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise ModelFileError(f"'{path}' cannot be right: {error}. Save the model again.") from error
    return manifest


def _read_document(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST_NAME
    if not path.is_file() or path.is_symlink():
        what = "is not an artifact: it has no manifest.json" if folder.is_dir() else "does not exist"
        raise ModelFileError(f"'{folder}' {what}. Give a folder that InferenceOptimizer.save wrote.")
    if path.stat().st_size > MAX_BYTES:
        raise ModelFileError(f"'{path}' has {path.stat().st_size} bytes; expected {MAX_BYTES} at most.")
    try:
        document = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"'{path}' is damaged: {error}. Save the model again.") from error
    if not isinstance(document, dict):
        raise ModelFileError(f"'{path}' is damaged: it holds no JSON object. Save the model again.")
    return document


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _settings(values: Mapping[str, Any]) -> Settings:
    settings = Settings(**values)
    counts = (settings.threads, settings.streams, 1 if settings.micro_batch is None else settings.micro_batch)
    if not all(_is_count(count) for count in counts):
        raise ValueError(f"settings {dict(values)}")
    return settings


def _shape(values: Any) -> tuple[int, ...]:
    shape = tuple(values)
    if not shape or not all(type(size) is int and size > 0 for size in shape):
        raise ValueError(f"the input shape {shape}")
    return shape


def _check_values(manifest: Manifest) -> None:
    words = (manifest.method, manifest.backend, manifest.precision, *manifest.input_dtypes)
    mappings = (manifest.options, manifest.backend_data, manifest.metadata, manifest.versions, manifest.files)
    share = manifest.int8_share
    checks = {
        "method": all(isinstance(word, str) and word.isprintable() and len(word) < 100 for word in words),
        "precision": manifest.precision in [precision.value for precision in Precision],
        "input_dtypes": all(name in _DTYPES for name in manifest.input_dtypes)
        and len(manifest.input_dtypes) == len(manifest.input_shapes) > 0,
        "input_shapes": all(
            math.prod(shape[1:]) * (manifest.fixed_batch or 1) <= MAX_NUMBERS for shape in manifest.input_shapes
        ),
        "num_outputs": _is_count(manifest.num_outputs),
        "a flag": isinstance(manifest.dynamic_batch, bool) and isinstance(manifest.vnni, bool),
        "int8_share": share is None or (isinstance(share, int | float) and 0 <= share <= 1),
        "structure": manifest.structure is None or num_leaves(manifest.structure) == manifest.num_outputs,
        "a mapping": all(isinstance(mapping, dict) for mapping in mappings),
        "files": all(_is_entry(name, entry) for name, entry in manifest.files.items()),
    }
    wrong = [name for name, holds in checks.items() if not holds]
    if wrong:
        raise ValueError(f"{wrong[0]} has a value that no artifact has")


def _is_entry(name: str, entry: Any) -> bool:
    plain = name.isprintable() and Path(name).name == name and name not in ("", ".", "..", MANIFEST_NAME)
    return plain and isinstance(entry, dict) and entry.keys() == {"bytes", "sha256"} and type(entry["bytes"]) is int


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value <= 2**20
