"""Facts about this host that decide how to share it: cores, nodes, limits of the container, memory, instructions."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from yolox.cpu.cgroups import cpu_quota, cpuset, kernel_bytes, memory_limit, parse_cpu_list, read_or_empty

_INTERESTING_FLAGS = frozenset(
    {"avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"}
    | {"amx_fp16", "asimd", "asimddp", "asimdhp", "bf16", "i8mm", "sve"}  # the second line is ARM's
)


@dataclass(frozen=True, slots=True)
class LogicalCpu:
    """One hardware thread: its number, and the core, socket and NUMA node it belongs to."""

    number: int
    core: int
    socket: int = 0
    node: int = 0


@dataclass(frozen=True)
class Machine:
    """What this process may use.

    Args:
        cpus: Hardware threads that are online.
        allowed: Numbers of those that this process may run on (affinity mask and cpuset together).
        quota: CPU time a second that the container may use, in CPUs; None without a limit.
        isa: Flags of the instruction sets that matter here, as Linux writes them.
        model_name: Name of the processor.
        memory_bytes: Memory of the host or the container's limit, whichever is less; None when unknown.
        system: ``Linux``, ``Darwin`` ...
    """

    cpus: tuple[LogicalCpu, ...]
    allowed: tuple[int, ...]
    quota: float | None = None
    isa: frozenset[str] = frozenset()
    model_name: str = "unknown"
    memory_bytes: int | None = None
    system: str = "Linux"

    @cached_property
    def usable(self) -> tuple[LogicalCpu, ...]:
        """The allowed hardware threads, by number."""
        allowed = set(self.allowed)
        return tuple(sorted((cpu for cpu in self.cpus if cpu.number in allowed), key=lambda cpu: cpu.number))

    @cached_property
    def cores(self) -> tuple[tuple[LogicalCpu, ...], ...]:
        """The allowed physical cores, each with its allowed hardware threads, ordered by node, socket and number."""
        groups: dict[tuple[int, int, int], list[LogicalCpu]] = {}
        for cpu in self.usable:
            groups.setdefault((cpu.node, cpu.socket, cpu.core), []).append(cpu)
        ordered = sorted(groups.values(), key=lambda group: (group[0].node, group[0].socket, group[0].number))
        return tuple(tuple(group) for group in ordered)

    @property
    def num_logical(self) -> int:
        """Hardware threads this process may use."""
        return len(self.usable)

    @property
    def num_cores(self) -> int:
        """Physical cores this process may use."""
        return len(self.cores)

    @property
    def num_sockets(self) -> int:
        """Sockets with at least one allowed core."""
        return len({cpu.socket for cpu in self.usable})

    @property
    def num_nodes(self) -> int:
        """NUMA nodes with at least one allowed core."""
        return len({cpu.node for cpu in self.usable})

    @property
    def num_threads(self) -> int:
        """Threads that compute well here: one for each allowed core, within the container's quota."""
        if self.quota is None:
            return self.num_cores
        return max(1, min(self.num_cores, int(self.quota + 0.5)))

    @property
    def has_bf16(self) -> bool:
        """Whether the processor multiplies bfloat16 in hardware."""
        return bool(self.isa & {"avx512_bf16", "amx_bf16", "bf16"})

    @property
    def has_fp16(self) -> bool:
        """Whether the processor multiplies half precision in hardware."""
        return bool(self.isa & {"avx512_fp16", "amx_fp16", "asimdhp"})

    @property
    def has_vnni(self) -> bool:
        """Whether the processor has dot products of 8-bit numbers."""
        return bool(self.isa & {"avx512_vnni", "avx_vnni", "amx_int8", "i8mm", "asimddp"})

    def as_dict(self) -> dict[str, object]:
        """Return plain values for a report file."""
        return {
            "model_name": self.model_name,
            "system": self.system,
            "logical_cpus": len(self.cpus),
            "usable_logical_cpus": self.num_logical,
            "usable_cores": self.num_cores,
            "sockets": self.num_sockets,
            "numa_nodes": self.num_nodes,
            "cpu_quota": self.quota,
            "isa": sorted(self.isa),
            "memory_bytes": self.memory_bytes,
        }

    def __str__(self) -> str:
        """Return one line for a log."""
        parts = [f"{self.model_name}: {self.num_cores} cores ({self.num_logical} hardware threads)"]
        if self.num_logical < len(self.cpus):
            parts.append(f"of {len(self.cpus)} hardware threads in all")
        parts.append(f"{self.num_sockets} socket(s), {self.num_nodes} NUMA node(s)")
        if self.quota is not None:
            parts.append(f"container quota {self.quota:g} CPUs")
        if self.memory_bytes is not None:
            parts.append(f"{self.memory_bytes / 2**30:.1f} GiB")
        return ", ".join([*parts, " ".join(sorted(self.isa)) or "no known vector instructions"])


def read_machine(root: Path = Path("/"), affinity: Iterable[int] | None = None) -> Machine:
    """Return the facts of this host.

    Args:
        root: Where ``proc`` and ``sys`` lie; a test gives a made-up tree.
        affinity: Hardware threads this process may run on; by default the kernel is asked.
    """
    cpus = parse_topology(root / "sys/devices/system")
    known = {cpu.number for cpu in cpus}
    allowed = _affinity(known) if affinity is None else set(affinity)
    allowed = allowed & cpuset(root) or allowed
    model_name, isa = parse_cpuinfo(read_or_empty(root / "proc/cpuinfo"))
    return Machine(
        cpus=cpus,
        allowed=tuple(sorted(allowed & known)) or tuple(sorted(known)),
        quota=cpu_quota(root),
        isa=isa,
        model_name=model_name or platform.processor() or platform.machine(),
        memory_bytes=_memory(root),
        system=platform.system(),
    )


def read_cpu_flags(root: Path = Path("/")) -> frozenset[str]:
    """Return all flags of the processor, as ``/proc/cpuinfo`` names them; empty where there is no such file."""
    return _cpuinfo(read_or_empty(root / "proc/cpuinfo"))[1]


def pretend_machine(sockets: int, cores: int, threads: int = 2, nodes: int | None = None) -> Machine:
    """Return a machine that exists on paper only, to see what a plan would be there.

    Args:
        sockets: Number of sockets.
        cores: Physical cores of each socket.
        threads: Hardware threads of each core, numbered as Linux does: first threads of all cores come first.
        nodes: NUMA nodes in all; one a socket by default.
    """
    total = sockets * cores
    nodes = sockets if nodes is None else nodes
    cpus = tuple(
        LogicalCpu(number=thread * total + core, core=core % cores, socket=core // cores, node=core * nodes // total)
        for thread in range(threads)
        for core in range(total)
    )
    flags = frozenset({"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"})
    name = f"pretended {sockets} x {cores} cores"
    return Machine(cpus, tuple(cpu.number for cpu in cpus), isa=flags, model_name=name, memory_bytes=total * 2**32)


def parse_topology(system: Path) -> tuple[LogicalCpu, ...]:
    """Read ``/sys/devices/system``; where it is missing, every hardware thread counts as a core."""
    online = parse_cpu_list(read_or_empty(system / "cpu/online"))
    if not online:
        return tuple(LogicalCpu(number, core=number) for number in range(os.cpu_count() or 1))
    node_of = {
        number: int(folder.name.removeprefix("node"))
        for folder in (system / "node").glob("node[0-9]*")
        for number in parse_cpu_list(read_or_empty(folder / "cpulist"))
    }
    cpus = []
    for number in sorted(online):
        topology = system / f"cpu/cpu{number}/topology"
        siblings = parse_cpu_list(read_or_empty(topology / "thread_siblings_list"))
        # core_id repeats across dies of one socket, the first sibling does not
        core = min(siblings) if siblings else _number(topology / "core_id", number)
        socket = max(0, _number(topology / "physical_package_id", 0))
        cpus.append(LogicalCpu(number, core, socket, node_of.get(number, 0)))
    return tuple(cpus)


def parse_cpuinfo(text: str) -> tuple[str, frozenset[str]]:
    """Return the processor's name and its interesting flags from the text of ``/proc/cpuinfo``."""
    name, flags = _cpuinfo(text)
    return name, flags & _INTERESTING_FLAGS


def _cpuinfo(text: str) -> tuple[str, frozenset[str]]:
    name, flags = "", frozenset[str]()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name" and not name:
            name = value.strip()
        elif key.strip() in ("flags", "Features") and not flags:
            flags = frozenset(value.split())
    return name, flags


def restricted(machine: Machine, numbers: Iterable[int]) -> Machine:
    """Return ``machine`` as a process sees it that may run only on ``numbers``."""
    return replace(machine, allowed=tuple(sorted(set(machine.allowed) & set(numbers))))


def _affinity(known: set[int]) -> set[int]:
    return set(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else set(known)


def _memory(root: Path) -> int | None:
    limits = [memory_limit(root), kernel_bytes(root / "proc/meminfo", "MemTotal")]
    return min((limit for limit in limits if limit is not None), default=None)


def _number(path: Path, default: int) -> int:
    text = read_or_empty(path).strip()
    return int(text) if text.lstrip("-").isdigit() else default
