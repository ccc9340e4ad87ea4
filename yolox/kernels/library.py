"""Opens the compiled kernels of this folder, or says why training does without them."""

from __future__ import annotations

import ctypes
import logging
import os
from functools import lru_cache
from pathlib import Path

from yolox.errors import YoloxError
from yolox.kernels.build import compiled_kernels

__all__ = ["SWITCH", "kernels"]

SWITCH = "YOLOX_KERNELS"
"""Environment variable; ``0`` computes with PyTorch's own operators instead."""

_log = logging.getLogger(__name__)


@lru_cache(maxsize=1)
def kernels() -> ctypes.CDLL | None:
    """Return the compiled kernels, or None, with one note about the reason, where there can be none."""
    if os.environ.get(SWITCH) == "0":
        return None
    try:
        return compiled_kernels(Path(__file__).parent / "csrc" / "training")
    except YoloxError as error:
        _log.warning("kernels: %s; training computes with PyTorch's operators, which is slower", error)
        return None
