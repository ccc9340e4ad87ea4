"""What a trainer is made of: a pure function of its settings and the machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lightning_fabric.plugins import ClusterEnvironment
from pytorch_lightning.callbacks import Callback

from yolox.cpu.machine import Machine
from yolox.trainer.arguments import as_list, check_arguments, count_processes, unknown_operators, warmup_epochs
from yolox.trainer.checkpoint_io import AtomicCheckpointIO
from yolox.trainer.ipex import IpexTraining
from yolox.trainer.launchers import build_launcher
from yolox.trainer.launchers.base import Worker
from yolox.trainer.launchers.heartbeat import HangLimits
from yolox.trainer.lightning_bridge import LauncherStrategy
from yolox.trainer.plan import ExecutionPlan, Request, make_plan
from yolox.trainer.precision import PrecisionOptions, build_precision
from yolox.trainer.run_callbacks import GracefulStop, ResumeCounters, ScaledLearningRate, TrainingKernels
from yolox.trainer.slot_environment import SlotEnvironment


@dataclass(frozen=True)
class Settings:
    """What the caller of the trainer wants, and what the process has read of its surroundings.

    Args:
        request: What the plan is made from.
        on_cpu: Whether the accelerator is the CPU.
        precision_options: Memory format, and exceptions from mixed precision.
        auto_lr: Whether, and with how many epochs of warm-up, the learning rate is scaled.
        stop_checkpoint: What SIGTERM and Ctrl-C write; None for the default.
        hang_timeout: Seconds without any activity in a step; None for no limit.
        lightning: Arguments for ``pytorch_lightning.Trainer``.
    """

    request: Request = field(default_factory=Request)
    on_cpu: bool = True
    precision_options: PrecisionOptions = field(default_factory=PrecisionOptions)
    auto_lr: bool | Mapping[str, int] = False
    stop_checkpoint: str | Path | None = None
    hang_timeout: float | None = HangLimits.step
    lightning: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Parts:
    """What the trainer is made of.

    Args:
        plan: Who computes where.
        checkpoint_io: Writes and reads its checkpoints.
        arguments: For ``pytorch_lightning.Trainer``.
        threads: PyTorch's threads in this process, where it is one that trains; None leaves them alone.
        is_alone: Whether no other process takes part, whatever the environment variables say.
        sync_batchnorm: Whether batch normalisations use the statistics of all ranks.
        notes: What the user should know, one sentence each.
    """

    plan: ExecutionPlan
    checkpoint_io: AtomicCheckpointIO
    arguments: dict[str, Any]
    threads: int | None
    is_alone: bool
    sync_batchnorm: bool
    notes: tuple[str, ...]


def resolve(settings: Settings, machine: Machine) -> Parts:
    """Decide what a trainer is made of; nothing is started, read or changed.

    Raises:
        UsageError: When the settings contradict each other or the machine.
        MissingDependencyError: When a library that was asked for is not there.
    """
    arguments = {"accelerator": "cpu", **settings.lightning}
    warmup = warmup_epochs(settings.auto_lr)
    num_processes = count_processes(settings.request.num_processes, arguments)
    check_arguments(arguments, num_processes or 1)
    plan = make_plan(_request(settings, num_processes), machine)
    accelerator = arguments["accelerator"]
    device = accelerator if isinstance(accelerator, str) and not settings.on_cpu else "cpu"
    checkpoint_io = AtomicCheckpointIO()
    precision = build_precision(plan.precision, device, settings.precision_options)
    arguments["plugins"] = [*as_list(arguments.get("plugins")), precision, checkpoint_io]
    arguments["callbacks"] = [*as_list(arguments.get("callbacks")), *_callbacks(settings, plan, warmup)]
    threads, is_alone = None, False
    sync_batchnorm = settings.on_cpu and bool(arguments.pop("sync_batchnorm", False))
    if not settings.on_cpu:
        arguments.setdefault("devices", num_processes or 1)
    elif plan.launcher == "none":
        threads = plan.slots[0].threads
        is_alone = not any(isinstance(plugin, ClusterEnvironment) for plugin in arguments["plugins"])
        arguments["plugins"] += [SlotEnvironment(1)] if is_alone else []
        arguments.update(accelerator="cpu", devices=1)
    else:
        threads = None if plan.joined is None else plan.slots[plan.joined.rank].threads
        arguments.setdefault("use_distributed_sampler", False)
        arguments.update(accelerator="cpu", devices=plan.world, strategy=_strategy(settings, plan))
    notes = (*plan.notes, *unknown_operators(settings.precision_options))
    return Parts(plan, checkpoint_io, arguments, threads, is_alone, sync_batchnorm, notes)


def _request(settings: Settings, num_processes: int | None) -> Request:
    request = replace(settings.request, num_processes=num_processes)
    if settings.on_cpu:
        return request
    return replace(request, num_processes=1, use_ipex=False, supervised=False, joined=None)


def _callbacks(settings: Settings, plan: ExecutionPlan, warmup: int | None) -> list[Callback]:
    callbacks: list[Callback] = [TrainingKernels()] if settings.on_cpu else []
    if settings.auto_lr:
        callbacks.append(ScaledLearningRate(warmup))
    if plan.ipex:
        callbacks.append(IpexTraining(plan.precision, bf16_weights=settings.precision_options.uniform))
    return [*callbacks, ResumeCounters(), GracefulStop(settings.stop_checkpoint)]


def _strategy(settings: Settings, plan: ExecutionPlan) -> LauncherStrategy:
    """Return how the processes of the plan work together: those to be started, or those of torchrun or srun."""
    joined = plan.joined
    if joined is not None:
        slot = plan.slots[joined.rank]
        worker = Worker(slot, joined.rendezvous, local_rank=joined.local_rank, node_rank=joined.node_rank)
        return LauncherStrategy(None, plan.slots, plan.process_group, worker)
    limits = None if settings.hang_timeout is None else HangLimits(step=settings.hang_timeout)
    launcher = build_launcher(plan.launcher, limits, settings.request.cluster)
    return LauncherStrategy(launcher, plan.slots, plan.process_group)
