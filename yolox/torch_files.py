"""Files of ``torch.save``, read whole and without executing anything in them.

An archive is checked before a tensor of it is made: its members lie uncompressed, as PyTorch writes them, their sizes
add up to no more than the file, and their checksums agree. PyTorch itself checks none of that.
"""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from yolox.errors import ModelFileError

_ZIP_START = b"PK\x03\x04"
_MAX_STRUCTURE = 64 * 2**20  # bytes of the pickled structure around the tensors
_MAX_MEMBERS = 100_000
_ENCRYPTED = 0x1

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


def read_torch_file(path: str | Path, map_location: Any = "cpu") -> Any:
    """Return the content of a file written by ``torch.save``.

    Args:
        path: The file.
        map_location: Where tensors are put, as in ``torch.load``.

    Raises:
        ModelFileError: When the file is missing, damaged, compressed or no PyTorch file, or holds code to execute.
    """
    file = Path(path)
    if not file.is_file():
        state = "is a folder" if file.is_dir() else "does not exist"
        raise ModelFileError(f"checkpoint '{file}' {state}; expected a .pth file. Check the path.")
    try:
        with file.open("rb") as handle:
            zipped = handle.read(4) == _ZIP_START
    except OSError as error:
        raise ModelFileError(f"checkpoint '{file}' cannot be read: {error.strerror}. Check its permissions.") from error
    if file.stat().st_size == 0 or (zipped and not zipfile.is_zipfile(file)):
        raise ModelFileError(
            f"checkpoint '{file}' is truncated ({file.stat().st_size} bytes). Copy or download it again, "
            "or use an earlier checkpoint."
        )
    if zipped:
        _check_archive(file)
    try:
        with torch.serialization.safe_globals(_NUMPY_SCALARS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on foreign formats; what cannot be read is refused below
            return torch.load(file, map_location=map_location, weights_only=True, mmap=False)
    except Exception as error:  # a damaged file can make the unpickler fail in any way
        raise ModelFileError(_why_unreadable(file, error)) from error


def _check_archive(file: Path) -> None:
    """Refuse an archive that PyTorch did not write, or that is not as it was written.

    Raises:
        ModelFileError: Saying what is wrong.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            problem = _problem_of(members, file.stat().st_size)
            if not problem and (damaged := archive.testzip()) is not None:
                problem = f"the checksum of '{damaged[:100]}' does not agree"
    except Exception as error:  # noqa: BLE001 - a damaged archive can make the reader fail in any way
        problem = str(error)[:160] or type(error).__name__
    if problem:
        raise ModelFileError(
            f"'{file}' cannot be read as a checkpoint: {problem}. It is truncated, damaged or no PyTorch file; copy it "
            "again or give another file."
        )


def _problem_of(members: list[zipfile.ZipInfo], size: int) -> str:
    if len(members) > _MAX_MEMBERS or len({member.filename for member in members}) != len(members):
        return f"its {len(members)} members are too many, or of equal names"
    if any(member.compress_type != zipfile.ZIP_STORED or member.flag_bits & _ENCRYPTED for member in members):
        return "it is compressed or encrypted, which torch.save never does"
    if sum(member.file_size for member in members) > size:
        return "its members claim more bytes than the file has"
    if any(member.filename.endswith("data.pkl") and member.file_size > _MAX_STRUCTURE for member in members):
        return f"its structure takes more than {_MAX_STRUCTURE} bytes"
    return ""


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
