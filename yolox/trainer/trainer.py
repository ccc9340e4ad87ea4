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
from torch import Tensor, nn
from torch.optim import Optimizer

from yolox.cpu.allocator import keep_freed_memory
from yolox.cpu.ipex_location import locate_ipex
from yolox.cpu.machine import read_machine
from yolox.trainer.arguments import check_accelerator, ignore_foreign_warnings, refuse, silence_advertisements
from yolox.trainer.checkpoint_io import load_module, run_with_restarts, save_module
from yolox.trainer.ipex import plan_ipex
from yolox.trainer.launchers.heartbeat import HangLimits
from yolox.trainer.launchers.joined import joined_rank
from yolox.trainer.lightning_bridge import forget_rank, install_stop_signals, synchronise_batchnorm
from yolox.trainer.operator_precision import read_operator_lists
from yolox.trainer.plain_module import compile_module
from yolox.trainer.plan import CCL, IPEX, Request
from yolox.trainer.precision import PrecisionOptions
from yolox.trainer.resolve import Parts, Settings, resolve

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
        distributed_backend: How processes start: ``subprocess`` (or its other name ``spawn``), ``ray`` or ``spark``.
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
        accelerator = pl_arguments.get("accelerator", "cpu")
        check_accelerator(accelerator)
        request = Request(
            num_processes=num_processes,
            distributed_backend=distributed_backend,
            process_group_backend=process_group_backend,
            cluster=cluster,
            cpu_for_each_process=cpu_for_each_process,
            precision=precision,
            use_ipex=use_ipex,
            ipex_note=plan_ipex(locate_ipex()).note if use_ipex else "",
            auto_lr=bool(auto_lr),
            strict=strict,
            supervised=max_restarts > 0,
            omp_num_threads=_omp_num_threads(),
            importable=frozenset(name for name in _OPTIONAL if find_spec(name) is not None),
            joined=joined_rank(os.environ),
        )
        operators = read_operator_lists(bf16_operations, fp32_operations)
        settings = Settings(
            request,
            on_cpu=accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available()),
            precision_options=PrecisionOptions(channels_last or use_ipex, tuple(fp32_modules), operators),
            auto_lr=auto_lr,
            stop_checkpoint=stop_checkpoint,
            hang_timeout=hang_timeout,
            lightning=pl_arguments,
        )
        parts = resolve(settings, read_machine())
        self.plan = parts.plan
        self.max_restarts = max_restarts
        self._checkpoint_files = parts.checkpoint_io
        _prepare_process(settings, parts)
        super().__init__(**parts.arguments)
        install_stop_signals(self)
        if parts.sync_batchnorm:
            synchronise_batchnorm(self)
        if self.is_global_zero:
            if self.plan.launcher != "none":
                _log.info("%s", self.plan.summary)
            for note in parts.notes:
                _log.warning("%s", note)

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


def _prepare_process(settings: Settings, parts: Parts) -> None:
    """Set what belongs to this process and not to the trainer: memory, threads, its rank in Lightning's log."""
    silence_advertisements()
    if settings.on_cpu:
        _log.debug("%s", keep_freed_memory())
    if parts.threads is not None:
        torch.set_num_threads(parts.threads)
    if parts.is_alone:
        forget_rank()


def _omp_num_threads() -> int | None:
    text = os.environ.get("OMP_NUM_THREADS", "")
    return int(text) if text.isdigit() else None
