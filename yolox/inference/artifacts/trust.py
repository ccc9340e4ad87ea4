"""What may be loaded from a stranger: files that are data, after a look at every one of them; programs by word only.

A model file is a *program* when loading it can run code of whoever made it: machine code (Inductor), TorchScript (it
can write files), IPEX. OpenVINO, ONNX, safetensors and the programs of our own 8-bit engine are *data*: their libraries
compute what the file describes and nothing else, as long as the file keeps to what is checked here.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from yolox.errors import ModelFileError
from yolox.inference.artifacts.manifest import MANIFEST_NAME, Manifest, file_entry

MAX_XML_BYTES = 256 * 1024**2
_MOST_DIGITS = 20  # Python converts no more than 4300
_OPSET = re.compile(r"opset\d{1,3}")

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# onnx.proto: in which fields of a message another message lies that can hold a tensor
_NESTED: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # of a TensorProto
_DOMAIN = 7  # of a NodeProto
_DOMAINS = ("", "ai.onnx", "com.microsoft", "ai.onnx.ml")
MAX_DEPTH = 32


def check_onnx(path: Path) -> None:
    """Check that an ONNX file is whole, takes no numbers from other files and needs no foreign operators.

    The format is read by hand (`the encoding of protocol buffers <https://protobuf.dev/programming-guides/encoding>`_),
    because a deployed model runs without the ``onnx`` package.

    Raises:
        ModelFileError: With what was found.
    """
    try:
        _check_message(memoryview(path.read_bytes()), "model", path, 0)
    except (IndexError, ValueError) as error:
        raise ModelFileError(f"'{path}' is not a readable ONNX model. Save the model again.") from error


def _check_message(data: memoryview, kind: str, path: Path, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ValueError("nested too deep")
    for number, value in _fields(data):
        if kind == "tensor" and (number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0)):
            raise ModelFileError(f"'{path}' takes numbers from another file, which no saved model does. It is refused.")
        if kind == "node" and number == _DOMAIN and isinstance(value, memoryview):
            domain = bytes(value).decode("utf-8")
            if domain not in _DOMAINS:
                raise ModelFileError(f"'{path}' uses operators of '{domain[:60]!r}', which are not ONNX's. Refused.")
        inner = _NESTED.get(kind, {}).get(number)
        if inner is not None:
            if not isinstance(value, memoryview):
                raise ValueError("a message was expected")
            _check_message(value, inner, path, depth + 1)


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield number and value of each field of a protocol buffer."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, position = _varint(data, position)
            yield number, value
            continue
        if wire == _BYTES:
            length, position = _varint(data, position)
        elif wire in (_FIXED32, _FIXED64):
            length = 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire}")
        if length > len(data) - position:
            raise ValueError("a field goes beyond the file")
        yield number, data[position : position + length]
        position += length


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")


def check_openvino(path: Path) -> None:
    """Check that an OpenVINO model (.xml) has known operators alone and reads its weights from its own ``.bin`` file.

    Raises:
        ModelFileError: With what was found.
    """
    weights = path.with_suffix(".bin")
    for file in (path, weights):
        if not file.is_file():
            raise ModelFileError(f"'{file}' does not exist; expected an OpenVINO model as .xml and .bin side by side.")
    if path.stat().st_size > MAX_XML_BYTES:
        raise ModelFileError(f"'{path}' has {path.stat().st_size} bytes; expected {MAX_XML_BYTES} at most.")
    data = path.read_bytes()
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise ModelFileError(f"'{path}' declares entities, which no saved model does. It is refused.")
    try:
        root = ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise ModelFileError(f"'{path}' is not a readable OpenVINO model. Save the model again.") from error
    available = weights.stat().st_size
    for layer in root.iter("layer"):
        if _OPSET.fullmatch(layer.get("version", "")) is None:
            raise ModelFileError(
                f"'{path}' has an operator of '{layer.get('version', '')[:60]}', which is not OpenVINO's. Refused."
            )
    for values in root.iter("data"):
        _check_weights(values.attrib, available, path)


def _check_weights(values: Mapping[str, Any], available: int, path: Path) -> None:
    for name, value in values.items():
        if "path" in name.lower() or "file" in name.lower():
            raise ModelFileError(f"'{path}' names the file '{str(value)[:60]}', which no saved model does. Refused.")
    if "offset" in values and "size" in values:
        offset, size = str(values["offset"]), str(values["size"])
        short = max(len(offset), len(size)) <= _MOST_DIGITS
        if not (short and offset.isdecimal() and size.isdecimal() and int(offset) + int(size) <= available):
            raise ModelFileError(f"'{path}' reads weights beyond the end of its .bin file. Save the model again.")


def check_npz(path: Path) -> None:
    """Check that an archive of arrays is not larger inside than outside, and holds nothing but arrays.

    Raises:
        ModelFileError: With what was found.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise ModelFileError(f"'{path}' is not a readable archive of arrays. Save the model again.") from error
    plain = all(re.fullmatch(r"arr_\d+\.npy", member.filename) for member in members)
    stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
    if not (plain and stored and sum(member.file_size for member in members) <= path.stat().st_size):
        raise ModelFileError(f"'{path}' holds something else than stored arrays. Save the model again.")


@dataclass(frozen=True)
class ArtifactFormat:
    """The files of one back end.

    Args:
        files: Their names; nothing else may lie in the folder.
        program: Why loading them needs trust, ``None`` when they are data.
        optional: Names of files that some models have besides.
        check: Looks at the files and raises `ModelFileError` for what no model of this back end holds.
    """

    files: tuple[str, ...]
    program: str | None = None
    optional: tuple[str, ...] = ()
    check: Callable[[Path], None] | None = None


def _check_native(folder: Path) -> None:
    check_npz(folder / "arrays.npz")
    for name in ("before.onnx", "after.onnx"):
        if (folder / name).exists():
            check_onnx(folder / name)


FORMATS: Mapping[str, ArtifactFormat] = {
    "eager": ArtifactFormat(("weights.safetensors",)),
    "native": ArtifactFormat(
        ("program.json", "arrays.npz"),
        optional=("before.onnx", "after.onnx"),
        check=_check_native,
    ),
    "openvino": ArtifactFormat(("model.xml", "model.bin"), check=lambda folder: check_openvino(folder / "model.xml")),
    "onnxruntime": ArtifactFormat(("model.onnx",), check=lambda folder: check_onnx(folder / "model.onnx")),
    "jit": ArtifactFormat(("model.torchscript",), "TorchScript is a program that can read and write files"),
    "ipex": ArtifactFormat(("model.torchscript",), "TorchScript is a program that can read and write files"),
    "inductor": ArtifactFormat(("model.pt2",), "an Inductor package holds machine code"),
}


def needs_trust(manifest: Manifest) -> bool:
    """Whether loading the artifact can run code of whoever made it."""
    return FORMATS[manifest.backend].program is not None


def check_trust(folder: Path, manifest: Manifest, trust: bool) -> None:
    """Refuse a program that the user has not said to trust.

    Raises:
        ModelFileError: With the reason and the word to say.
    """
    known = FORMATS.get(manifest.backend)
    if known is None:
        raise ModelFileError(f"'{folder}' needs the back end '{manifest.backend}'; known are {', '.join(FORMATS)}.")
    if known.program is not None and not trust:
        raise ModelFileError(
            f"'{folder}' ({manifest.method}) is not loaded: {known.program}, and loading it would run it. If you made "
            "it or trust who did, say so: --trust, or trust=True in Python."
        )


def check_files(folder: Path, manifest: Manifest) -> None:
    """Check that the folder holds the files of the back end, unchanged, nothing else, and nothing that is not data.

    Raises:
        ModelFileError: For a file that is missing, foreign, a link, changed, or not what its format allows.
    """
    known = FORMATS[manifest.backend]
    if not set(known.files) <= set(manifest.files) <= {*known.files, *known.optional}:
        raise ModelFileError(
            f"'{folder}' lists the files {_listed(manifest.files)}; a model of '{manifest.backend}' has "
            f"{_listed(known.files)}. Save the model again."
        )
    for path in folder.iterdir():
        if path.name not in (*manifest.files, MANIFEST_NAME):
            raise ModelFileError(
                f"'{folder}' holds '{path.name}', which is no part of the model. Remove it, or save the model again."
            )
    for name, entry in manifest.files.items():
        path = folder / name
        if path.is_symlink() or not path.is_file():
            state = "is a link" if path.is_symlink() else "is missing"
            raise ModelFileError(f"'{path}' {state}. Save the model again.")
        if path.stat().st_size != entry["bytes"] or file_entry(path) != entry:
            raise ModelFileError(f"'{path}' is not the file that was saved (its checksum differs). Save it again.")
    if known.check is not None:
        known.check(folder)


def _listed(names: Mapping[str, object] | tuple[str, ...]) -> str:
    return ", ".join(sorted(names)) or "(none)"
