"""Ranks that another program has started, torchrun or srun: this process is one of them and starts nothing itself."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

_FIRST_PORT, _NUM_PORTS = 15_000, 17_000  # below those that Linux gives to connections
_STEPS = 97  # numbers between two jobs, so that steps side by side in one job meet at different ports


@dataclass(frozen=True)
class JoinedRank:
    """The place of this process in a run that another program has started.

    Args:
        starter: ``torchrun`` or ``srun``.
        rank: Its number, from 0.
        world: Number of processes in all.
        local_rank: Its number on its machine.
        local_world: Number of processes on its machine.
        node_rank: Number of its machine.
        rendezvous: ``init_method`` of ``torch.distributed.init_process_group``.
    """

    starter: str
    rank: int
    world: int
    local_rank: int
    local_world: int
    node_rank: int
    rendezvous: str


def joined_rank(environment: Mapping[str, str]) -> JoinedRank | None:
    """Return the rank that torchrun or srun has given this process, or None where it trains alone.

    Variables alone do not tell: a batch script inherits those of its allocation, and a shell those of an earlier run.
    torchrun is known by the id of its run, srun by the number of tasks of its step. One process alone is no run, and
    neither is what somebody types into the shell of ``srun --pty``: only the first task has a terminal.

    Args:
        environment: The variables of this process.
    """
    number = {name: int(value) for name, value in environment.items() if value.isdigit()}
    if "TORCHELASTIC_RUN_ID" in environment and number.get("WORLD_SIZE", 1) > 1:
        return JoinedRank(
            "torchrun",
            number["RANK"],
            number["WORLD_SIZE"],
            number["LOCAL_RANK"],
            number.get("LOCAL_WORLD_SIZE", 1),
            number.get("GROUP_RANK", 0),
            "env://",
        )
    if number.get("SLURM_STEP_NUM_TASKS", 1) < 2 or ("SLURM_PTY_PORT" in environment and os.isatty(0)):
        return None
    node = number.get("SLURM_NODEID", 0)
    host = environment.get("MASTER_ADDR") or _first_host(environment.get("SLURM_STEP_NODELIST", "127.0.0.1"))
    step = _STEPS * number.get("SLURM_JOB_ID", 0) + number.get("SLURM_STEP_ID", 0)
    port = number.get("MASTER_PORT", _FIRST_PORT + step % _NUM_PORTS)
    return JoinedRank(
        "srun",
        number["SLURM_PROCID"],
        number["SLURM_STEP_NUM_TASKS"],
        number.get("SLURM_LOCALID", 0),
        _tasks_of_node(environment.get("SLURM_STEP_TASKS_PER_NODE", ""), node),
        node,
        f"tcp://{host}:{port}",
    )


def _first_host(nodes: str) -> str:
    """Return the first name of a Slurm list such as ``cpu[03-05,7],other``."""
    match = re.match(r"([^,\[]+)(?:\[(\d+))?", nodes)
    return f"{match[1]}{match[2] or ''}" if match else nodes


def _tasks_of_node(counts: str, node: int) -> int:
    """Return the tasks of one node from Slurm's list such as ``4(x2),1``; 1 where it does not say."""
    tasks = [int(count) for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", counts) for _ in range(int(times or 1))]
    return tasks[node] if node < len(tasks) else 1
