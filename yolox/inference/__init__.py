"""How a CPU machine runs any nn.Module fast: methods, measurement, artifacts.

`InferenceOptimizer` is the way in; ``artifact.load_model`` runs what it saved, without PyTorch where none is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yolox.inference.optimizer import InferenceOptimizer

__all__ = ["InferenceOptimizer"]


def __getattr__(name: str) -> Any:
    """Import `InferenceOptimizer`, and with it PyTorch, when it is asked for."""
    if name == "InferenceOptimizer":
        from yolox.inference.optimizer import InferenceOptimizer

        return InferenceOptimizer
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
