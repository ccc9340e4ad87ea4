"""Processes that run one function once per slot."""

from __future__ import annotations

from yolox.errors import UsageError
from yolox.trainer.launchers.base import Launcher
from yolox.trainer.launchers.heartbeat import HangLimits
from yolox.trainer.launchers.popen import PopenLauncher
from yolox.trainer.launchers.spawn import SpawnLauncher

__all__ = ["build_launcher"]


def build_launcher(name: str, limits: HangLimits | None) -> Launcher:
    """Return the launcher of a backend.

    Args:
        name: As in ``distributed_backend``.
        limits: When a run that does nothing is taken to hang; None for never.

    Raises:
        UsageError: When there is none of that name.
    """
    if name == "subprocess":
        return PopenLauncher(limits)
    if name == "spawn":
        return SpawnLauncher(limits)
    raise UsageError(f"distributed_backend '{name}' is not offered by this version; use 'subprocess' or 'spawn'.")
