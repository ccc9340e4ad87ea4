"""Ray: one actor on each node of a cluster, or of a small one that lives only for the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from yolox.errors import UsageError
from yolox.processes.ray_cluster import ray_cluster
from yolox.trainer.launchers.agent import serve_node
from yolox.trainer.launchers.base import Slot, Worker
from yolox.trainer.launchers.heartbeat import HangLimits
from yolox.trainer.launchers.protocol import JoinInfo
from yolox.trainer.launchers.remote import run_remote

_END_SECONDS = 5.0


class RayLauncher:
    """Has the slots run on the nodes of a Ray cluster.

    A Ray that this process is already part of is used and left running. Else the cluster at ``address``, or at
    ``$RAY_ADDRESS``, is joined for the run; without an address, a Ray of this machine is started for the run.

    Args:
        address: Address of a running cluster, ``host:6379``.
        limits: When a run that does nothing is taken to hang; None for never.
    """

    def __init__(self, address: str | None = None, limits: HangLimits | None = HangLimits()) -> None:  # noqa: B008 - frozen
        self.address = address
        self.limits = limits

    def run(self, function: Callable[[Worker], Any], slots: Sequence[Slot]) -> list[Any]:
        """Return the results by rank; see `Launcher`."""
        with ray_cluster(self.address, client=False) as ray:
            engine = _Nodes(ray)
            try:
                return run_remote(engine, function, slots, self.limits)
            finally:
                engine.close()


class _Nodes:
    """The nodes of the cluster that this process is connected to."""

    def __init__(self, ray: Any) -> None:
        self.ray = ray
        self.host = str(ray.util.get_node_ip_address())
        self._actors: list[Any] = []
        self._ends: list[Any] = []

    def start(self, join_info: JoinInfo, world: int) -> None:
        """Start one actor on each node that gets ranks.

        Raises:
            UsageError: When no node computes.
        """
        ray = self.ray
        nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
        own = ray.get_runtime_context().get_node_id()
        cpus = {name: float(node["Resources"].get("CPU", 0.0)) for name, node in nodes.items()}
        shares = share_nodes(cpus, world, own)
        for number, (name, ranks) in enumerate(shares.items()):
            node = nodes[name]
            placement = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(name, soft=False)
            options = {"num_cpus": min(float(ranks), cpus[name]), "scheduling_strategy": placement, "max_restarts": 0}
            actor = ray.remote(_Agent).options(**options).remote()
            label = f"{node['NodeManagerHostname']} (Ray node {name[:8]}, {node['NodeManagerAddress']})"
            self._actors.append(actor)
            self._ends.append(actor.serve.remote(join_info, number, label, ranks, int(cpus[name])))

    def trouble(self) -> str | None:
        """Return what Ray says of actors that failed."""
        ended, _ = self.ray.wait(self._ends, num_returns=len(self._ends), timeout=0)
        for end in ended:
            try:
                self.ray.get(end, timeout=1)
            except Exception as error:  # noqa: BLE001 - whatever Ray raises is what it says
                return str(error).strip()
        return None

    def close(self) -> None:
        """Wait a little for the actors, which end with their connection, then kill them."""
        if self._ends and self.ray.is_initialized():
            self.ray.wait(self._ends, num_returns=len(self._ends), timeout=_END_SECONDS)
            for actor in self._actors:
                self.ray.kill(actor)


class _Agent:
    """The actor of one node."""

    def serve(self, join_info: JoinInfo, number: int, label: str, ranks: int, threads: int) -> None:
        """Start and watch the ranks of this node."""
        serve_node(join_info, number, label, ranks, threads)


def share_nodes(cpus: Mapping[str, float], world: int, own: str) -> dict[str, int]:
    """Return how many ranks each node gets: as many for each CPU everywhere, the own node first.

    Args:
        cpus: CPUs of each node; nodes without any get no ranks.
        world: Number of ranks.
        own: The node of this process, which gets rank 0 if it computes.

    Raises:
        UsageError: When no node has a CPU.
    """
    able = sorted((name for name in cpus if cpus[name] > 0), key=lambda name: (name != own, -cpus[name], name))
    if not able:
        raise UsageError(f"none of the {len(cpus)} nodes of the Ray cluster has a CPU to compute with.")
    counts = dict.fromkeys(able, 0)
    for rank in range(world):
        chosen = able[0] if rank == 0 else min(able, key=lambda name: (counts[name] + 1) / cpus[name])
        counts[chosen] += 1
    return {name: count for name, count in counts.items() if count}
