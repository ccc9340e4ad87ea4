"""Opens the compiled kernels: those of the widest instruction set that this processor has, or of a smaller one."""

from __future__ import annotations

import ctypes
import logging
import os
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from yolox.cpu.machine import read_cpu_flags
from yolox.errors import UsageError, YoloxError
from yolox.kernels.build import built_library
from yolox.kernels.variants import Variant, supported_variants

SWITCH = "YOLOX_KERNELS"
"""Environment variable: the name of a variant to use; ``0`` trains with PyTorch's own operators instead."""

_log = logging.getLogger(__name__)


@cache
def host_variants() -> tuple[Variant, ...]:
    """Return the variants that this processor can run, the fastest first."""
    return supported_variants(read_cpu_flags())


def kernels() -> ctypes.CDLL | None:
    """Return the kernels, or None, with one note about the reason, where there can be none or none are wanted."""
    name = os.environ.get(SWITCH, "")
    return None if name == "0" else _opened_or_none(name)


def required_kernels() -> ctypes.CDLL:
    """Return the kernels; what has no other way to compute needs them.

    Raises:
        UsageError: When the environment variable names a variant that this processor cannot run.
        YoloxError: Where there is no library and no compiler, or it fails.
    """
    name = os.environ.get(SWITCH, "")
    return _opened("" if name == "0" else name)


@cache
def _opened(name: str) -> ctypes.CDLL:
    path = built_library(_chosen(name))
    try:
        _load_openmp()
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise YoloxError(f"the kernels cannot be opened: {error}") from error


@cache
def _opened_or_none(name: str) -> ctypes.CDLL | None:
    try:
        return _opened(name)
    except UsageError:
        raise
    except YoloxError as error:
        _log.warning("kernels: %s; training computes with PyTorch's operators, which is slower", error)
        return None


def _chosen(name: str) -> Variant:
    variants = {variant.name: variant for variant in host_variants()}
    if not name:
        return next(iter(variants.values()))
    if name not in variants:
        known = ", ".join(variants)
        raise UsageError(f"{SWITCH}={name}: this processor runs {known}; name one of these, or 0 for none")
    return variants[name]


def _load_openmp() -> None:
    """Make PyTorch's OpenMP library, or else the system's, the one whose threads the kernels use.

    Without any, the library's own functions of the same names compute in the thread that calls.
    """
    with suppress(OSError):
        ctypes.CDLL(_bundled_openmp() or "libgomp.so.1", ctypes.RTLD_GLOBAL)


def _bundled_openmp() -> str:
    """Return PyTorch's own OpenMP library; empty where it uses the system's."""
    spec = find_spec("torch")  # does not import it: artifacts run without
    if spec is None or spec.origin is None:
        return ""
    package = Path(spec.origin).parent
    found = sorted((package / "lib").glob("libgomp*.so*"))
    found += sorted((package.parent / "torch.libs").glob("libgomp*.so*"))
    return str(found[0]) if found else ""
