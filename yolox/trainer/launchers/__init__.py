"""Processes that run one function once per slot."""

from __future__ import annotations

from yolox.errors import UsageError
from yolox.trainer.launchers.base import Launcher
from yolox.trainer.launchers.heartbeat import HangLimits
from yolox.trainer.launchers.popen import PopenLauncher

__all__ = ["build_launcher"]


def build_launcher(name: str, limits: HangLimits | None, cluster: str | None = None) -> Launcher:
    """Return the launcher of a backend.

    Args:
        name: As in ``distributed_backend``.
        limits: When a run that does nothing is taken to hang; None for never.
        cluster: Address of the cluster, for ``ray`` and ``spark``.

    Raises:
        UsageError: When there is none of that name.
    """
    if name == "ray":
        from yolox.trainer.launchers.ray_actors import RayLauncher

        return RayLauncher(cluster, limits)
    if name == "spark":
        from yolox.trainer.launchers.spark_barrier import SparkLauncher

        return SparkLauncher(cluster, limits)
    if name != "subprocess":
        raise UsageError(f"there is no distributed_backend '{name}'; use 'subprocess', 'spawn', 'ray' or 'spark'.")
    return PopenLauncher(limits)
