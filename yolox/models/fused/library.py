"""Compiles the kernels of this folder once for a machine, keeps them in the cache folder, and opens them."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path

import torch

from yolox.errors import YoloxError
from yolox.files import atomic_path, cache_root

__all__ = ["SWITCH", "kernels"]

SWITCH = "YOLOX_KERNELS"
"""Environment variable; ``0`` computes with PyTorch's own operators instead."""

_log = logging.getLogger(__name__)
_HERE = Path(__file__).parent
_FLAGS = ("-O3", "-std=c++17", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi")
_SECONDS = 120


@lru_cache(maxsize=1)
def kernels() -> ctypes.CDLL | None:
    """Return the compiled kernels, or None, with one note about the reason, where there can be none.

    The first call on a machine compiles for some seconds; several processes may do so at once.
    """
    if os.environ.get(SWITCH) == "0":
        return None
    compiler = shutil.which(os.environ.get("CXX") or "g++")
    if compiler is None:
        _log.warning("kernels: no C++ compiler (g++) here; training computes with PyTorch's operators, which is slower")
        return None
    try:
        library = cache_root() / f"kernels-{_key(compiler)}.so"
        if not library.exists():
            _compile(compiler, library)
        return ctypes.CDLL(str(library))
    except (OSError, subprocess.SubprocessError, YoloxError) as error:
        detail = getattr(error, "stderr", None) or error
        _log.warning("kernels: cannot be compiled; training computes with PyTorch's operators, slower: %s", detail)
        return None


def _sources() -> list[Path]:
    return sorted(path for path in _HERE.iterdir() if path.suffix in {".cpp", ".h"})


def _key(compiler: str) -> str:
    """Return a name for everything that decides what the compiler makes of the sources."""
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=_SECONDS).stdout
    parts = [version, platform.machine().encode(), _instruction_set(), " ".join(_FLAGS).encode(), _openmp().encode()]
    parts += [path.read_bytes() for path in _sources()]
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
    found = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    found += sorted((Path(torch.__file__).parents[1] / "torch.libs").glob("libgomp*.so*"))
    return str(found[0]) if found else ""


def _compile(compiler: str, library: Path) -> None:
    library.parent.mkdir(parents=True, exist_ok=True)
    native = "-march=native" if platform.machine() in {"x86_64", "AMD64"} else "-mcpu=native"
    sources = [str(path) for path in _sources() if path.suffix == ".cpp"]
    with atomic_path(library) as temporary:
        objects = [f"{temporary}.{Path(source).stem}.o" for source in sources]
        try:
            for source, target in zip(sources, objects, strict=True):
                _run([compiler, *_FLAGS, native, "-fopenmp", "-c", source, "-o", target])
            _run([compiler, "-shared", *objects, _openmp() or "-fopenmp", "-o", str(temporary)])
        finally:
            for target in objects:
                Path(target).unlink(missing_ok=True)
    _log.info("kernels: compiled %s", library)


def _run(command: list[str]) -> None:
    subprocess.run(command, capture_output=True, check=True, text=True, timeout=_SECONDS)
