"""Share the cores of one machine among the processes that compute on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from yolox.cpu.cgroups import format_cpu_list
from yolox.cpu.machine import LogicalCpu, Machine
from yolox.errors import UsageError

Core = tuple[LogicalCpu, ...]


@dataclass(frozen=True)
class CoreShare:
    """The part of one process.

    Args:
        cpus: Numbers of its hardware threads.
        threads: Threads it should compute with: one for each core, within its part of the container's quota.
    """

    cpus: tuple[int, ...]
    threads: int


def share_cores(world: int, machine: Machine, notes: list[str]) -> tuple[CoreShare, ...]:
    """Return the shares of ``world`` processes of one machine.

    Args:
        world: Number of processes on this machine.
        machine: What they may use.
        notes: Gets what the user should know, one sentence each.
    """
    cores = machine.cores
    if machine.num_threads < machine.num_cores:
        notes.append(
            f"the container's quota is {machine.quota:g} CPUs: {machine.num_threads} computing threads in all, "
            f"although {machine.num_cores} cores can be seen"
        )
    if world > machine.num_threads:
        notes.append(
            f"{world} processes share {machine.num_threads} cores: that works, but fewer processes would be faster"
        )
        blocks: list[tuple[Core, ...]] = [(cores[rank % len(cores)],) for rank in range(world)]
    else:
        blocks = _split(cores, world, machine, notes)
    per_process = max(1, machine.num_threads // world)
    threads = [min(len(block), per_process) for block in blocks]
    idle = machine.num_threads - sum(threads)
    if idle > 0 and world > 1:
        notes.append(f"{idle} core(s) are left to data loading, so that all processes compute alike")
    return tuple(
        CoreShare(tuple(sorted(cpu.number for core in block for cpu in core)), count)
        for block, count in zip(blocks, threads, strict=True)
    )


def chosen_shares(lists: Sequence[Sequence[int]], machine: Machine, notes: list[str]) -> tuple[CoreShare, ...]:
    """Return the shares that a user has chosen with ``cpu_for_each_process``.

    Args:
        lists: For each process the numbers of its hardware threads.
        machine: What the processes may use.
        notes: As in `share_cores`.

    Raises:
        UsageError: When a list is empty or names a hardware thread that this process may not use.
    """
    allowed = set(machine.allowed)
    core_of = {cpu.number: (cpu.node, cpu.socket, cpu.core) for cpu in machine.cpus}
    shares = []
    for rank, numbers in enumerate(lists):
        if not numbers or not allowed.issuperset(numbers):
            raise UsageError(
                f"cpu_for_each_process gives rank {rank} the hardware threads {list(numbers)}; "
                f"this process may use {format_cpu_list(machine.allowed)}. Name at least one, and only those."
            )
        shares.append(CoreShare(tuple(sorted(set(numbers))), len({core_of[number] for number in numbers})))
    used = [number for share in shares for number in share.cpus]
    if len(used) > len(set(used)):
        notes.append("cpu_for_each_process gives some hardware threads to several processes: they share them")
    return tuple(shares)


def _split(cores: Sequence[Core], world: int, machine: Machine, notes: list[str]) -> list[tuple[Core, ...]]:
    """Cut the cores into equal blocks, none of which crosses a NUMA node where that can be had."""
    nodes: dict[int, list[Core]] = {}
    for core in cores:
        nodes.setdefault(core[0].node, []).append(core)
    sizes = [len(node) for node in nodes.values()]
    if world < len(nodes) or len(nodes) == 1:
        size = len(cores) // world
        if world < len(nodes) and len(nodes) % world:
            notes.append(f"{world} processes on {len(nodes)} NUMA nodes: some processes compute on two nodes")
        return [tuple(cores[rank * size : (rank + 1) * size]) for rank in range(world)]
    # the largest block size with which every process finds a place inside one node
    size = next(size for size in range(max(sizes), 0, -1) if sum(count // size for count in sizes) >= world)
    blocks = [tuple(node[at : at + size]) for node in nodes.values() for at in range(0, len(node) - size + 1, size)]
    if len(set(sizes)) > 1 and world % len(nodes):
        notes.append("the NUMA nodes differ in size: no process crosses a node, some nodes have cores to spare")
    return _spread(blocks, world)


def _spread(blocks: list[tuple[Core, ...]], world: int) -> list[tuple[Core, ...]]:
    """Choose ``world`` of the blocks, as evenly over the nodes as they allow, in their order."""
    seen: dict[int, int] = {}
    order = []
    for position, block in enumerate(blocks):
        node = block[0][0].node
        seen[node] = seen.get(node, 0) + 1
        order.append((seen[node], position))
    chosen = sorted(position for _, position in sorted(order)[:world])
    return [blocks[position] for position in chosen]
