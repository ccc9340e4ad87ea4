"""Who computes where: a pure function from what was asked and what the machine has to a plan that explains itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from yolox.cpu.cgroups import format_cpu_list
from yolox.cpu.cores import CoreShare, chosen_shares, share_cores
from yolox.cpu.machine import Machine
from yolox.errors import MissingDependencyError, UsageError, did_you_mean
from yolox.precision_names import PrecisionName, canonical_precision
from yolox.tables import text_table
from yolox.trainer.launchers.base import Slot
from yolox.trainer.launchers.joined import JoinedRank

BACKENDS = ("subprocess", "spawn", "ray", "spark")
"""Ways to start processes; ``spawn`` is BigDL-Nano's other name for what ``subprocess`` does."""
_LOCAL = ("subprocess", "spawn")
_NO_LONGER = {
    "k8s": "Kubernetes pods are not started from here; start one Ray or Spark worker per pod and use that",
    "horovod": "Horovod is not offered; 'ray' does the same",
    "ddp": "DDP is what every backend does; choose how processes start",
    "ddp_spawn": "use 'subprocess'",
}
_GROUPS = {None: "gloo", "gloo": "gloo", "ccl": "ccl", "mpi": "mpi"}
_IPEX_PRECISIONS = ("32", "bf16")
IPEX, CCL = "intel_extension_for_pytorch", "oneccl_bindings_for_pytorch"


@dataclass(frozen=True)
class Request:
    """The settings that a plan is made from, as the user gave them.

    Args:
        num_processes: None means one, or as many as ``cpu_for_each_process`` names.
        distributed_backend: One of `BACKENDS`.
        process_group_backend: None for gloo, ``gloo``, ``ccl`` or ``mpi``.
        cluster: Address of a Ray or Spark cluster.
        cpu_for_each_process: For each process the hardware threads it is bound to.
        precision: 64, 32, 16 or bf16, in any spelling.
        use_ipex: Whether Intel's extension is asked for.
        ipex_note: Where it is, or why training goes on without it.
        auto_lr: Whether the learning rate is to be scaled with the number of processes.
        strict: Whether a wish that cannot be met is an error instead of a note.
        supervised: Whether even a single process runs as a watched worker (to start it again after a crash).
        omp_num_threads: The user's OMP_NUM_THREADS, if any.
        importable: Names of optional modules that can be imported.
        joined: The place of this process where torchrun or srun has started the run.
    """

    num_processes: int | None = None
    distributed_backend: str = "subprocess"
    process_group_backend: str | None = None
    cluster: str | None = None
    cpu_for_each_process: Sequence[Sequence[int]] | None = None
    precision: int | str = 32
    use_ipex: bool = False
    ipex_note: str = ""
    auto_lr: bool = False
    strict: bool = False
    supervised: bool = False
    omp_num_threads: int | None = None
    importable: frozenset[str] = frozenset()
    joined: JoinedRank | None = None


@dataclass(frozen=True)
class ExecutionPlan:
    """Who computes where.

    Args:
        slots: One place for each process.
        launcher: How processes start; ``none`` trains in this process, ``torchrun`` and ``srun`` have started it.
        precision: The canonical name of the precision.
        notes: What the user should know of it, one sentence each.
        machine: The machine it is made for, in one line.
        process_group: How the ranks talk.
        ipex: Whether Intel's extension prepares the module.
        joined: As in `Request`.
    """

    slots: tuple[Slot, ...]
    launcher: str
    precision: PrecisionName
    notes: tuple[str, ...] = ()
    machine: str = ""
    process_group: str = "gloo"
    ipex: bool = False
    joined: JoinedRank | None = None

    @property
    def world(self) -> int:
        """Number of processes."""
        return len(self.slots)

    def describe(self) -> str:
        """Return the plan as text: the machine, a table of the processes, the notes."""
        return "\n".join([f"machine: {self.machine}", self.summary, *(f"note: {note}" for note in self.notes)])

    @property
    def summary(self) -> str:
        """How many processes, and where each computes unless its machine decides that."""
        rows = [(str(slot.rank), str(slot.threads), format_cpu_list(slot.cpus) or "not bound") for slot in self.slots]
        how = "in this process" if self.launcher == "none" else f"{self.world} processes started by {self.launcher}"
        ipex = " with IPEX" if self.ipex else ""
        line = f"plan: {how}, precision {self.precision}{ipex}" + (f", {self.process_group}" if self.world > 1 else "")
        decided = self.launcher in (*_LOCAL, "none")
        return f"{line}\n{text_table(('rank', 'threads', 'hardware threads'), rows, left=(2,))}" if decided else line

    def as_dict(self) -> dict[str, object]:
        """Return plain values for a report file."""
        slots = [{"rank": slot.rank, "threads": slot.threads, "cpus": list(slot.cpus)} for slot in self.slots]
        return {
            "launcher": self.launcher,
            "precision": self.precision,
            "process_group": self.process_group,
            "ipex": self.ipex,
            "slots": slots,
            "notes": list(self.notes),
        }


def make_plan(request: Request, machine: Machine) -> ExecutionPlan:
    """Decide who computes where.

    Raises:
        UsageError: When the request contradicts itself or the machine.
        MissingDependencyError: When a library that was asked for is not there.
    """
    world = _num_processes(request)
    _check_backend(request)
    notes: list[str] = []
    in_process = world == 1 and not request.supervised and request.cpu_for_each_process is None
    if request.joined is not None:
        shares = share_cores(request.joined.local_world, machine, notes)
        slots = tuple(Slot(rank, world, (), shares[request.joined.local_rank].threads) for rank in range(world))
    elif request.cpu_for_each_process is not None:
        slots = _slots(chosen_shares(request.cpu_for_each_process, machine, notes))
    elif in_process or request.distributed_backend in _LOCAL:
        slots = _slots(share_cores(world, machine, notes))
    else:
        slots = tuple(Slot(rank, world, (), request.omp_num_threads or 0) for rank in range(world))
    slots = _respect_omp(slots, request.omp_num_threads, notes)
    if in_process:
        slots = tuple(Slot(slot.rank, slot.world, (), slot.threads) for slot in slots)
    precision = canonical_precision(request.precision)
    notes += _precision_notes(precision, machine)
    notes += _other_notes(request, precision, machine, world)
    return ExecutionPlan(
        slots=slots,
        launcher=_launcher(request, in_process),
        precision=precision,
        notes=tuple(notes),
        machine=str(machine),
        process_group=_GROUPS[request.process_group_backend],
        ipex=request.use_ipex and IPEX in request.importable and precision in _IPEX_PRECISIONS,
        joined=request.joined,
    )


def _launcher(request: Request, in_process: bool) -> str:
    if request.joined is not None:
        return request.joined.starter
    if in_process:
        return "none"
    return "subprocess" if request.distributed_backend in _LOCAL else request.distributed_backend


def _slots(shares: Sequence[CoreShare]) -> tuple[Slot, ...]:
    return tuple(Slot(rank, len(shares), share.cpus, share.threads) for rank, share in enumerate(shares))


def _num_processes(request: Request) -> int:
    given, lists, joined = request.num_processes, request.cpu_for_each_process, request.joined
    if joined is not None:
        if given not in (None, joined.world) or lists is not None:
            raise UsageError(
                f"{joined.starter} has started {joined.world} processes, which contradicts num_processes={given} and "
                f"cpu_for_each_process={lists}. Leave both out, or start the command without {joined.starter}."
            )
        return joined.world
    if given is not None and (isinstance(given, bool) or not isinstance(given, int) or given < 1):
        raise UsageError(f"num_processes is {given!r}; expected a whole number of at least 1, or None for one process.")
    if lists is None:
        return given or 1
    if not lists or (given is not None and given != len(lists)):
        raise UsageError(
            f"cpu_for_each_process has {len(lists)} lists for {given or 'no'} processes; expected one list for each."
        )
    return len(lists)


def _check_backend(request: Request) -> None:
    backend, group = request.distributed_backend, request.process_group_backend
    if backend not in BACKENDS:
        reason = f" {_NO_LONGER[backend]}." if backend in _NO_LONGER else did_you_mean(str(backend), BACKENDS)
        raise UsageError(f"unknown distributed_backend '{backend}'; expected one of {', '.join(BACKENDS)}.{reason}")
    if group not in _GROUPS:
        raise UsageError(f"unknown process_group_backend '{group}'; expected None, 'gloo', 'ccl' or 'mpi'.")
    if group == "ccl" and CCL not in request.importable:
        raise MissingDependencyError(
            "oneCCL's binding for PyTorch (its development has ended; gloo, the default, needs nothing)",
            "pip install oneccl-bind-pt",
        )
    needed = {"ray": "ray", "spark": "pyspark"}.get(backend)
    if needed is not None and needed not in request.importable and (request.num_processes or 1) > 1:
        raise MissingDependencyError(needed, f"pip install 'yolox-cpu[{backend}]'")
    if backend not in _LOCAL and request.cpu_for_each_process is not None:
        raise UsageError(
            f"cpu_for_each_process names hardware threads of this machine; {backend} chooses machines itself. "
            "Leave it out: every machine shares its cores among its processes."
        )
    if request.cluster is not None and backend in _LOCAL:
        raise UsageError(
            f"cluster is '{request.cluster}', but distributed_backend '{backend}' stays on this machine; "
            "expected 'ray' or 'spark' with it."
        )


def _respect_omp(slots: tuple[Slot, ...], omp: int | None, notes: list[str]) -> tuple[Slot, ...]:
    if omp is None or omp < 1 or all(slot.threads <= omp for slot in slots):
        return slots
    notes.append(f"OMP_NUM_THREADS={omp} limits every process to {omp} thread(s)")
    return tuple(Slot(slot.rank, slot.world, slot.cpus, min(slot.threads, omp)) for slot in slots)


def _precision_notes(precision: PrecisionName, machine: Machine) -> list[str]:
    if precision == "bf16" and not machine.has_bf16:
        return ["this processor has no bfloat16 arithmetic: bf16 works, but is slower than 32 here"]
    if precision == "16" and not machine.has_fp16:
        return ["this processor has no half-precision arithmetic: 16 works, but is slower than 32 here; try bf16"]
    return []


def _other_notes(request: Request, precision: PrecisionName, machine: Machine, world: int) -> list[str]:
    notes = []
    if request.use_ipex and IPEX in request.importable and precision not in _IPEX_PRECISIONS:
        notes.append(f"use_ipex: Intel's extension has no precision {precision}; training uses PyTorch's own operators")
    if request.use_ipex and IPEX not in request.importable:
        if request.strict:
            raise MissingDependencyError("Intel's extension for PyTorch", "make ipex")
        notes.append(f"use_ipex: {request.ipex_note}")
    if request.cluster is not None and world == 1 and not request.supervised:
        notes.append(f"one process computes right here: the cluster at {request.cluster} is not used")
    if request.auto_lr and world == 1:
        notes.append("auto_lr changes nothing with one process")
    if world > 1 and machine.system != "Linux":
        notes.append(f"{machine.system} cannot bind processes to cores: the system places them")
    return notes
