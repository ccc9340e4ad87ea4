"""YOLOX on ordinary CPUs: train it fast, deploy it at the lowest latency that keeps its accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yolox.api import YOLOX, Boxes, Result

__version__ = "0.1.0"
__all__ = ["YOLOX", "Boxes", "Result", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the class `YOLOX` and its values when they are first used: ``import yolox`` costs next to nothing."""
    if name in ("YOLOX", "Boxes", "Result"):
        from yolox import api

        return getattr(api, name)
    raise AttributeError(f"module 'yolox' has no attribute '{name}'")
