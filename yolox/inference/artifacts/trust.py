"""What may be loaded from a stranger: files that are data, after a look at every one of them; programs by word only.

A model file is a *program* when loading it can run code of whoever made it: machine code (Inductor), TorchScript (it
can write files), IPEX. OpenVINO, ONNX, safetensors and the programs of our own 8-bit engine are *data*: their libraries
compute what the file describes and nothing else, as long as the file keeps to what is checked here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from yolox.errors import ModelFileError
from yolox.inference.artifacts.data_files import check_npz, check_onnx, check_openvino
from yolox.inference.artifacts.manifest import MANIFEST_NAME, Manifest, file_entry


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
