"""The supervisor's side of a run on a cluster: where agents dial in, and their ranks as a group.

An engine (Ray, Spark) only brings an agent to each machine; starting, watching and ending ranks is the same for all.
"""

from __future__ import annotations

import logging
import pickle
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from yolox.cpu.cores import share_cores
from yolox.processes.pickling import dumps
from yolox.tables import text_table
from yolox.temporary_folders import TemporaryFolder
from yolox.trainer.launchers.agent import machine_identity
from yolox.trainer.launchers.agent_server import AgentConnection, AgentServer
from yolox.trainer.launchers.base import Failure, Phase, Slot, Worker
from yolox.trainer.launchers.heartbeat import CpuActivity, HangLimits
from yolox.trainer.launchers.protocol import JoinInfo, Registration, SendSignal, StartRequest
from yolox.trainer.launchers.supervise import supervise
from yolox.trainer.launchers.worker import RunDirectory, Setup

_SILENCE_SECONDS = 7.0
_PAUSE_SECONDS = 3.0
_log = logging.getLogger(__name__)


class Engine(Protocol):
    """Brings agents to the machines of a cluster."""

    @property
    def host(self) -> str:
        """Address of this process, as the machines of the cluster reach it."""

    def start(self, join_info: JoinInfo, world: int) -> None:
        """Have `serve_node` called on the machines, for ``world`` ranks in all; return at once."""

    def trouble(self) -> str | None:
        """Return what the engine says of agents that could not start or ended by themselves, or None."""


def place_ranks(
    registrations: Sequence[Registration], slots: Sequence[Slot], home: str, rendezvous: str
) -> dict[int, Setup]:
    """Decide which agent, by number, gets which ranks, and how many threads each computes with; pure.

    Ranks of one machine are neighbours. Rank 0, which writes the files, is on the supervisor's machine where that is
    one of them.

    Args:
        registrations: All agents; their ranks add up to the number of slots.
        slots: What was asked for; threads of 0 leave the number to the machine.
        home: Identity of the supervisor's machine.
        rendezvous: Where all ranks meet.
    """
    machines: dict[str, list[Registration]] = {}
    for registration in sorted(registrations, key=lambda agent: (agent.identity != home, agent.number)):
        machines.setdefault(registration.identity, []).append(registration)
    places: dict[int, Setup] = {}
    rank = 0
    for node_rank, agents in enumerate(machines.values()):
        shares = share_cores(sum(agent.ranks for agent in agents), agents[0].machine, [])
        local = 0
        for agent in agents:
            reserved = None if agent.threads is None else max(1, agent.threads // agent.ranks)
            own = []
            for number in range(agent.ranks):
                limits = (shares[local + number].threads, reserved, slots[rank].threads)
                own.append(Slot(rank, len(slots), (), min(limit for limit in limits if limit)))
                rank += 1
            places[agent.number] = Setup(tuple(own), rendezvous, local, node_rank)
            local += agent.ranks
    return places


def run_remote(
    engine: Engine, function: Callable[[Worker], Any], slots: Sequence[Slot], limits: HangLimits | None
) -> list[Any]:
    """Run ``function`` once per slot on the machines of an engine; see `Launcher`.

    Raises:
        UsageError: When the cluster has no place for all ranks, or the function holds what cannot be pickled.
        RankError: When a rank failed or its machine is gone.
    """
    payload = dumps(function, "the run")
    folder = TemporaryFolder("run")
    directory = RunDirectory(folder.path)
    try:
        with AgentServer(engine.host, directory) as server, _store(engine.host) as rendezvous:
            engine.start(server.join_info, len(slots))
            agents = server.wait_for_agents(len(slots), engine.trouble)
            places = place_ranks([agent.registration for agent in agents], slots, machine_identity(), rendezvous)
            _log.info("%s", _describe(agents, places))
            one_machine = all(place.node_rank == 0 for place in places.values())
            for agent in agents:
                agent.start(StartRequest(places[agent.registration.number], payload, one_machine))
            return supervise(directory, _RemoteWorkerGroup(directory, agents, len(slots), engine.trouble), limits)
    finally:
        folder.remove()


def _describe(agents: Sequence[AgentConnection], places: dict[int, Setup]) -> str:
    rows = [
        (str(slot.rank), str(slot.threads), agent.registration.label)
        for agent in agents
        for slot in places[agent.registration.number].slots
    ]
    return text_table(("rank", "threads", "on"), sorted(rows, key=lambda row: int(row[0])), left=(2,))


@contextmanager
def _store(host: str) -> Iterator[str]:
    """Keep the store where ranks meet in this process: its port is taken before anybody is told of it."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
    yield f"tcp://{host}:{store.port}"
    del store


class _RemoteWorkerGroup:
    """The ranks of all agents.

    Args:
        directory: Where their files arrive.
        agents: The connection to each agent.
        world: Number of ranks.
        trouble: Asks the engine why an agent is gone.
    """

    def __init__(
        self, directory: RunDirectory, agents: Sequence[AgentConnection], world: int, trouble: Callable[[], str | None]
    ) -> None:
        self.directory = directory
        self.agents = agents
        self.world = world
        self.trouble = trouble
        self._agent_of = {rank: agent for agent in agents for rank in agent.ranks}
        self._asked_at = time.monotonic()

    def poll(self, rank: int) -> int | None:
        """Return the exit code of a rank, or None; a rank whose agent is gone has failed."""
        now, agent = time.monotonic(), self._agent_of[rank]
        if now - self._asked_at > _PAUSE_SECONDS:  # it was this process that slept
            for other in self.agents:
                other.heard_at = now
        self._asked_at = now
        state = agent.states.get(rank)
        if state is not None and state.code is not None:
            return state.code
        silent = now - agent.heard_at
        if not agent.closed and silent < _SILENCE_SECONDS:
            return None
        if not self.directory.file("failure", rank).exists() and not self.directory.file("result", rank).exists():
            why = "closed its connection" if agent.closed else f"has been silent for {silent:.0f} s"
            text = f"the machine or our process there is gone: {agent.registration.label} {why}"
            failure = Failure(rank, "lost", text, self.trouble() or "", time.time())
            self.directory.file("failure", rank).write_bytes(pickle.dumps(failure))
        return -signal.SIGKILL

    def send(self, rank: int, signum: int) -> None:
        """Have the rank's agent send it a signal."""
        with suppress(OSError):
            self._agent_of[rank].channel.send(SendSignal(rank, int(signum)))

    def cpu_activities(self) -> dict[int, CpuActivity]:
        """Return what the agents reported last."""
        return {rank: state.cpu_activity for agent in self.agents for rank, state in agent.states.items()}

    def heartbeat(self, rank: int) -> tuple[int, Phase]:
        """Return the signs of life of a rank so far, and what it is doing."""
        state = self._agent_of[rank].states.get(rank)
        return (0, "setup") if state is None else (state.beats, state.phase)

    def where(self, rank: int) -> str:
        """Return the machine's name where there are several."""
        several = len({agent.registration.label for agent in self.agents}) > 1
        return self._agent_of[rank].registration.label if several else ""

    def kill(self) -> None:
        """Hang up on every agent, which kills what it has started."""
        for agent in self.agents:
            agent.hang_up()
