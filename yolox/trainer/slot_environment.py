"""Which rank this process is, as Lightning asks for it."""

from __future__ import annotations

from lightning_fabric.plugins import ClusterEnvironment

from yolox.trainer.launchers.base import Worker


class SlotEnvironment(ClusterEnvironment):
    """Tells Lightning which rank this process is; here, before launching, it is rank 0.

    Args:
        world: Number of processes.
    """

    def __init__(self, world: int) -> None:
        self._world = world
        self.worker: Worker | None = None

    @property
    def creates_processes_externally(self) -> bool:
        """The launcher does, not Lightning."""
        return True

    @property
    def main_address(self) -> str:
        """Not used: ranks meet at the worker's rendezvous."""
        return "127.0.0.1"

    @property
    def main_port(self) -> int:
        """Not used."""
        return 0

    @staticmethod
    def detect() -> bool:
        """Never chosen by itself."""
        return False

    def world_size(self) -> int:
        """Return the number of processes."""
        return self._world

    def set_world_size(self, size: int) -> None:
        """Ignore it: the plan decides."""

    def global_rank(self) -> int:
        """Return this process's number."""
        return self.worker.slot.rank if self.worker else 0

    def set_global_rank(self, rank: int) -> None:
        """Ignore it: the plan decides."""

    def local_rank(self) -> int:
        """Return this process's number on its machine."""
        return self.worker.local_rank if self.worker else 0

    def node_rank(self) -> int:
        """Return the machine's number."""
        return self.worker.node_rank if self.worker else 0
