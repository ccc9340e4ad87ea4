"""How a CPU machine trains any LightningModule: plan, launchers, strategies, precision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yolox.trainer.trainer import Trainer

__all__ = ["Trainer"]


def __getattr__(name: str) -> Any:
    """Import `Trainer`, and with it Lightning, when it is asked for."""
    if name == "Trainer":
        from yolox.trainer.trainer import Trainer

        return Trainer
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
