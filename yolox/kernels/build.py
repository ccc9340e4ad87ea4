"""Compiles the kernels for an instruction set: a wheel brings all libraries, a checkout makes the one that it needs."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path

from yolox.errors import MissingDependencyError, YoloxError
from yolox.files import atomic_path, cache_root
from yolox.kernels.variants import Variant

SHIPPED = Path(__file__).parent / "lib"
"""Where a wheel has the libraries."""

_SOURCES = Path(__file__).parent / "csrc"
_FLAGS = ("-O3", "-std=c++17", "-fPIC", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-fno-gnu-unique")
_OTHERS = ("-Wno-psabi", "-pipe")  # without files in TMPDIR, which a killed compiler leaves
# No OpenMP library: csrc/openmp.cpp says why. Nothing else may be left open. Of the C++ library only what is used stays
# and is hidden: the rest would ask for a newer C library than csrc/glibc.cpp does.
_LINK = ("-shared", "-pthread", "-static-libstdc++", "-Wl,--gc-sections", "-Wl,--exclude-libs,ALL", "-Wl,-z,defs")
_SECONDS = 300

_log = logging.getLogger(__name__)


def built_library(variant: Variant) -> Path:
    """Return the library of a variant: the wheel's, that of an earlier call, or one compiled now, in some seconds.

    Several processes may do so at once. A compiler is asked for only where there is no library.

    Raises:
        MissingDependencyError: Where there is no C++ compiler.
        YoloxError: When the compiler fails, with what it printed.
    """
    library = found_library(variant)
    if library is None:
        library = cache_root() / library_name(variant)
        compile_library(variant, library)
    return library


def found_library(variant: Variant) -> Path | None:
    """Return the library of a variant, the wheel's or that of an earlier call; None where there is none yet."""
    paths = (folder / library_name(variant) for folder in (SHIPPED, cache_root()))
    return next((path for path in paths if path.exists()), None)


@cache
def library_name(variant: Variant, options: Sequence[str] = ()) -> str:
    """Return a file name that changes with everything of ours that decides what the compiler makes."""
    files = sorted(path for path in _SOURCES.rglob("*") if path.suffix in {".cpp", ".h"})
    parts = [platform.machine(), *_FLAGS, *_LINK, *variant.options, *options]
    content = b"\0".join([*(part.encode() for part in parts), *(path.read_bytes() for path in files)])
    return f"kernels-{variant.name}-{hashlib.sha256(content).hexdigest()[:16]}.so"


def compiler() -> str | None:
    """Return the path of the C++ compiler: ``$CXX`` or g++; None where there is none."""
    return shutil.which(os.environ.get("CXX") or "g++")


def compile_library(variant: Variant, library: Path, options: Sequence[str] = ()) -> None:
    """Compile all sources into one library.

    Args:
        variant: For which processors.
        library: The file to write, whole or not at all.
        options: More of the compiler's, such as a sanitizer's.

    Raises:
        MissingDependencyError: Where there is no C++ compiler.
        YoloxError: When the compiler fails, with what it printed.
    """
    program = compiler()
    if program is None:
        raise MissingDependencyError("g++ (a C++ compiler)", "apt-get install g++")
    sources = sorted(_SOURCES.rglob("*.cpp"), key=lambda path: -path.stat().st_size)  # the longest first
    command = [program, *_FLAGS, *_OTHERS, *variant.options, *options]
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(library.parent)
        with atomic_path(library) as temporary:
            objects = [temporary.with_name(f"{temporary.name}.{path.parent.name}.{path.stem}.o") for path in sources]
            jobs = [
                [*command, "-I", str(_SOURCES), "-c", str(source), "-o", str(target)]
                for source, target in zip(sources, objects, strict=True)
            ]
            try:
                with ThreadPoolExecutor(os.cpu_count()) as pool:
                    list(pool.map(_run, jobs))
                _run([program, *options, *_LINK, *map(str, objects), "-o", str(temporary)])
            finally:
                for target in objects:
                    target.unlink(missing_ok=True)
    except (OSError, subprocess.SubprocessError) as error:
        detail: object = error
        if isinstance(error, subprocess.CalledProcessError):
            detail = error.stderr or f"the compiler ended with code {error.returncode}"  # below zero: by that signal
        raise YoloxError(f"the kernels for {variant.name} cannot be compiled: {detail}") from error
    _log.info("kernels: compiled %s", library)


def _remove_leftovers(folder: Path) -> None:
    """Remove what a build that was killed left; one that goes on now may write to the same folder."""
    for path in folder.glob(".kernels-*.tmp*"):
        with suppress(OSError):  # another process removes them too, or they are not ours
            if path.stat().st_mtime < time.time() - 2 * _SECONDS:
                path.unlink()


def _run(command: list[str]) -> None:
    subprocess.run(command, capture_output=True, check=True, text=True, timeout=_SECONDS)
