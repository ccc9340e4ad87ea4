"""`Trainer`: Lightning's trainer on ordinary CPUs, with all cores, several processes and all precisions."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import ClusterEnvironment
from torch import Tensor, nn
from torch.optim import Optimizer

from yolox.cpu.allocator import keep_freed_memory
from yolox.cpu.ipex_location import locate_ipex
from yolox.cpu.machine import read_machine
from yolox.trainer.acceleration import TrainingKernels
from yolox.trainer.arguments import (
    as_list,
    check_accelerator,
    check_arguments,
    count_processes,
    ignore_foreign_warnings,
    refuse,
    silence_advertisements,
    unknown_operators,
    warmup_epochs,
)
from yolox.trainer.auto_lr import ScaledLearningRate
from yolox.trainer.checkpoint_io import AtomicCheckpointIO
from yolox.trainer.graceful_stop import GracefulStop
from yolox.trainer.ipex import IpexTraining, plan_ipex
from yolox.trainer.launchers import build_launcher
from yolox.trainer.launchers.base import Worker
from yolox.trainer.launchers.heartbeat import HangLimits
from yolox.trainer.launchers.joined import joined_rank
from yolox.trainer.lightning_bridge import LauncherStrategy, alone, install_stop_signals, synchronise_batchnorm
from yolox.trainer.operator_precision import read_operator_lists
from yolox.trainer.plain_module import compile_module
from yolox.trainer.plan import CCL, IPEX, Request, make_plan
from yolox.trainer.precision import PrecisionOptions, build_precision
from yolox.trainer.restarts import run_with_restarts
from yolox.trainer.saving import load_module, save_module

__all__ = ["Trainer"]

_log = logging.getLogger(__name__)
_OPTIONAL = (IPEX, CCL, "ray", "pyspark")


class Trainer(pl.Trainer):
    """Trains any LightningModule fast on CPUs, in one process or several.

    N processes give the weights of one: the batch size of an ordinary DataLoader is the total, every rank takes its
    share of each batch, and gradients are averaged. After `fit` the caller's module, optimizers, callbacks and
    counters are as if everything had happened in this process.

    Args:
        num_processes: Data-parallel processes; None means one, or one for each list of ``cpu_for_each_process``.
        use_ipex: Use Intel's extension where it can be found.
        distributed_backend: How processes start: ``subprocess``, ``spawn``, ``ray`` or ``spark``.
        process_group_backend: How processes talk: None for gloo, ``gloo``, ``ccl`` or ``mpi``.
        cpu_for_each_process: For each process the hardware threads it is bound to.
        channels_last: Whether module and 4-D batches take the channels_last memory format.
        auto_lr: True or ``{"warmup_epochs": n}``: multiply the learning rate by the number of processes.
        precision: 64, 32, 16 or "bf16".
        cluster: Address of a running Ray or Spark cluster; by default the one this process is part of, that of
            ``RAY_ADDRESS`` or ``spark-submit``, or this machine alone.
        strict: Whether a wish that cannot be met is an error instead of a note.
        fp32_modules: Names of parts that compute in float32 under precision bf16 or 16; ``*`` and ``?`` allowed.
        bf16_operations: File that lists operators to run in bf16.
        fp32_operations: File that lists operators to run in fp32.
        max_restarts: How often to start again from the last checkpoint after a process died.
        stop_checkpoint: What SIGTERM and Ctrl-C write; by default ``interrupted.ckpt`` in ``default_root_dir``.
        hang_timeout: Seconds without any activity in a step after which a run of several processes is stopped; None
            for never.
        pl_arguments: Handed to ``pytorch_lightning.Trainer``.

    Raises:
        UsageError: When an argument cannot be meant.
        MissingDependencyError: When a library that was asked for is not there.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - the interface of BigDL-Nano, and what it lacks
        self,
        num_processes: int | None = None,
        use_ipex: bool = False,
        distributed_backend: str = "subprocess",
        process_group_backend: str | None = None,
        cpu_for_each_process: Sequence[Sequence[int]] | None = None,
        channels_last: bool = False,
        auto_lr: bool | dict[str, int] = False,
        precision: int | str = 32,
        *,
        cluster: str | None = None,
        strict: bool = False,
        fp32_modules: Sequence[str] = (),
        bf16_operations: str | Path | None = None,
        fp32_operations: str | Path | None = None,
        max_restarts: int = 0,
        stop_checkpoint: str | Path | None = None,
        hang_timeout: float | None = HangLimits.step,
        **pl_arguments: Any,
    ) -> None:
        warmup = warmup_epochs(auto_lr)
        accelerator = pl_arguments.setdefault("accelerator", "cpu")
        check_accelerator(accelerator)
        on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available())
        num_processes = count_processes(num_processes, pl_arguments)
        check_arguments(pl_arguments, num_processes or 1)
        self.plan = make_plan(
            Request(
                num_processes=num_processes if on_cpu else 1,
                distributed_backend=distributed_backend,
                process_group_backend=process_group_backend,
                cluster=cluster,
                cpu_for_each_process=cpu_for_each_process,
                precision=precision,
                use_ipex=use_ipex and on_cpu,
                ipex_note=plan_ipex(locate_ipex()).note if use_ipex and on_cpu else "",
                auto_lr=bool(auto_lr),
                strict=strict,
                supervised=max_restarts > 0 and on_cpu,
                omp_num_threads=_omp_num_threads(),
                importable=frozenset(name for name in _OPTIONAL if find_spec(name) is not None),
                joined=joined_rank(os.environ) if on_cpu else None,
            ),
            read_machine(),
        )
        self.cluster = cluster
        self.max_restarts = max_restarts
        self._checkpoint_files = AtomicCheckpointIO()
        operators = read_operator_lists(bf16_operations, fp32_operations)
        options = PrecisionOptions(channels_last or use_ipex, tuple(fp32_modules), operators)
        device = accelerator if isinstance(accelerator, str) and not on_cpu else "cpu"
        plugins = [build_precision(self.plan.precision, device, options), self._checkpoint_files]
        pl_arguments["plugins"] = [*as_list(pl_arguments.get("plugins")), *plugins]
        callbacks = [*as_list(pl_arguments.get("callbacks")), *([TrainingKernels()] if on_cpu else [])]
        callbacks += [ScaledLearningRate(warmup)] if auto_lr else []
        callbacks += [IpexTraining(self.plan.precision, bf16_weights=options.uniform)] if self.plan.ipex else []
        pl_arguments["callbacks"] = [*callbacks, GracefulStop(stop_checkpoint)]
        sync_batchnorm = on_cpu and pl_arguments.pop("sync_batchnorm", False)
        if on_cpu:
            pl_arguments.update(self._cpu_arguments(hang_timeout, pl_arguments))
        else:
            pl_arguments.setdefault("devices", num_processes or 1)
        silence_advertisements()
        super().__init__(**pl_arguments)
        install_stop_signals(self)
        if sync_batchnorm:
            synchronise_batchnorm(self)
        self._tell(unknown_operators(options))

    def _tell(self, notes: Sequence[str]) -> None:
        """Log the plan and what the user should know of it."""
        if self.plan.launcher != "none" and self.is_global_zero:
            _log.info("%s", self.plan.summary)
        for note in (*self.plan.notes, *notes) if self.is_global_zero else ():
            _log.warning("%s", note)

    def _cpu_arguments(self, hang_timeout: float | None, given: dict[str, Any]) -> dict[str, Any]:
        """Return Lightning's arguments for the plan, after setting up this process where it is the one that trains."""
        _log.debug("%s", keep_freed_memory())
        if self.plan.launcher == "none":
            torch.set_num_threads(self.plan.slots[0].threads)
            plugins = as_list(given.get("plugins"))
            if not any(isinstance(plugin, ClusterEnvironment) for plugin in plugins):
                plugins = [*plugins, alone()]
            return {"accelerator": "cpu", "devices": 1, "plugins": plugins}
        return {
            "accelerator": "cpu",
            "devices": self.plan.world,
            "strategy": self._strategy(hang_timeout),
            "use_distributed_sampler": given.get("use_distributed_sampler", False),
        }

    def _strategy(self, hang_timeout: float | None) -> LauncherStrategy:
        """Return how the processes of the plan work together: those to be started, or those of torchrun or srun."""
        joined = self.plan.joined
        if joined is not None:
            slot = self.plan.slots[joined.rank]
            torch.set_num_threads(slot.threads)
            worker = Worker(slot, joined.rendezvous, local_rank=joined.local_rank, node_rank=joined.node_rank)
            return LauncherStrategy(None, self.plan.slots, self.plan.process_group, worker)
        limits = None if hang_timeout is None else HangLimits(step=hang_timeout)
        launcher = build_launcher(self.plan.launcher, limits, self.cluster)
        return LauncherStrategy(launcher, self.plan.slots, self.plan.process_group)

    def fit(
        self,
        model: pl.LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: pl.LightningDataModule | None = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Train ``model``; arguments are those of ``pytorch_lightning.Trainer.fit``.

        Raises:
            RankError: When a process failed; the message holds its traceback.
            SystemExit: With code 143 after SIGTERM and 130 after Ctrl-C, once a checkpoint is written.
        """
        begin = super().fit

        def fit(path: str | Path | None) -> None:
            begin(model, train_dataloaders, val_dataloaders, datamodule, path, weights_only)

        with warnings.catch_warnings():
            ignore_foreign_warnings()
            if self.max_restarts:
                run_with_restarts(fit, self._checkpoint_files, ckpt_path, self.max_restarts)
            else:
                fit(ckpt_path)

    def validate(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate on the validation data; arguments are those of ``pytorch_lightning.Trainer.validate``."""
        with warnings.catch_warnings():
            ignore_foreign_warnings()
            return super().validate(*args, **kwargs)

    def test(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate on the test data; arguments are those of ``pytorch_lightning.Trainer.test``."""
        with warnings.catch_warnings():
            ignore_foreign_warnings()
            return super().test(*args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Return predictions; arguments are those of ``pytorch_lightning.Trainer.predict``."""
        with warnings.catch_warnings():
            ignore_foreign_warnings()
            return super().predict(*args, **kwargs)

    @staticmethod
    def compile(
        model: nn.Module,
        loss: Callable[..., Tensor] | None = None,
        optimizer: Optimizer | None = None,
        scheduler: Any = None,
        metrics: Sequence[Callable[..., Any]] | None = None,
    ) -> pl.LightningModule:
        """Return a LightningModule around a plain module; see `compile_module`."""
        return compile_module(model, loss, optimizer, scheduler, metrics)

    @staticmethod
    def save(model: nn.Module, path: str | Path) -> None:
        """Write the weights of ``model`` into the folder ``path``; see `save_module`."""
        save_module(model, path)

    @staticmethod
    def load(
        path: str | Path,
        model: nn.Module | None = None,
        input_sample: Any = None,
        inplace: bool = False,
        device: Any = None,
    ) -> nn.Module:
        """Return ``model`` with the weights in the folder ``path``; see `load_module`."""
        return load_module(path, model, input_sample, inplace, device)

    search = search_summary = staticmethod(refuse("search", "run the trainer from Optuna or Ray Tune"))
    trace = staticmethod(refuse("trace", "use yolox.inference.InferenceOptimizer.trace"))
    quantize = staticmethod(refuse("quantize", "use yolox.inference.InferenceOptimizer.quantize"))


def _omp_num_threads() -> int | None:
    text = os.environ.get("OMP_NUM_THREADS", "")
    return int(text) if text.isdigit() else None
