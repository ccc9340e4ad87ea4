"""Compiles a folder of C++ kernels once for a machine, keeps the library in the cache folder, and opens it."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from yolox.errors import MissingDependencyError, YoloxError
from yolox.files import atomic_path, cache_root

__all__ = ["compiled_kernels"]

_log = logging.getLogger(__name__)
_HEADERS = Path(__file__).parent / "csrc"
_FLAGS = ("-O3", "-std=c++17", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi")
_SECONDS = 300


@lru_cache
def compiled_kernels(folder: Path, *options: str) -> ctypes.CDLL:
    """Return the library of all ``*.cpp`` files of ``folder``, which may include ``vectors.h`` of this one.

    The first call on a machine compiles for some seconds; several processes may do so at once.

    Args:
        folder: Where the sources are.
        options: More of the compiler's.

    Raises:
        MissingDependencyError: Where there is no C++ compiler.
        YoloxError: When the compiler fails, with what it printed.
    """
    compiler = shutil.which(os.environ.get("CXX") or "g++")
    if compiler is None:
        raise MissingDependencyError("g++ (a C++ compiler)", "apt-get install g++")
    openmp = _openmp()
    try:
        library = cache_root() / f"kernels-{_key(compiler, folder, (*options, openmp))}.so"
        if not library.exists():
            _compile([compiler, *_FLAGS, *options], folder, library, openmp)
        if openmp:  # by name, not by path, does the library ask for it
            ctypes.CDLL(openmp, ctypes.RTLD_GLOBAL)
        return ctypes.CDLL(str(library))
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", None) or error
        raise YoloxError(f"the kernels of {folder.name} cannot be compiled or opened: {detail}") from error


def _sources(folder: Path) -> list[Path]:
    return [*sorted(folder.glob("*.cpp")), *sorted(folder.glob("*.h")), *sorted(_HEADERS.glob("*.h"))]


def _key(compiler: str, folder: Path, others: tuple[str, ...]) -> str:
    """Return a name for everything that decides what the compiler makes of the sources."""
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=_SECONDS).stdout
    parts = [version, platform.machine().encode(), _instruction_set(), " ".join((*_FLAGS, *others)).encode()]
    parts += [path.read_bytes() for path in _sources(folder)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:20]


def _instruction_set() -> bytes:
    """Return the processor's flags: a cache folder may be shared by machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return platform.processor().encode()
    return next((line for line in lines if line.startswith((b"flags", b"Features"))), b"")


def _openmp() -> str:
    """Return PyTorch's own OpenMP library, so that there is one set of threads; empty where it uses the system's."""
    spec = find_spec("torch")  # does not import it: artifacts run without
    if spec is None or spec.origin is None:
        return ""
    package = Path(spec.origin).parent
    found = sorted((package / "lib").glob("libgomp*.so*"))
    found += sorted((package.parent / "torch.libs").glob("libgomp*.so*"))
    return str(found[0]) if found else ""


def _compile(compiler: list[str], folder: Path, library: Path, openmp: str) -> None:
    library.parent.mkdir(parents=True, exist_ok=True)
    native = "-march=native" if platform.machine() in {"x86_64", "AMD64"} else "-mcpu=native"
    sources = [str(path) for path in _sources(folder) if path.suffix == ".cpp"]
    with atomic_path(library) as temporary:
        objects = [f"{temporary}.{Path(source).stem}.o" for source in sources]
        try:
            for source, target in zip(sources, objects, strict=True):
                _run([*compiler, native, "-I", str(_HEADERS), "-fopenmp", "-c", source, "-o", target])
            _run([*compiler, "-shared", *objects, openmp or "-fopenmp", "-o", str(temporary)])
        finally:
            for target in objects:
                Path(target).unlink(missing_ok=True)
    _log.info("kernels: compiled %s", library)


def _run(command: list[str]) -> None:
    subprocess.run(command, capture_output=True, check=True, text=True, timeout=_SECONDS)
