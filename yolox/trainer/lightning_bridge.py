"""The only file that knows Lightning from the inside: it runs a trainer in the processes of a launcher.

The trainer is sent to every rank and does there what it would do here; what rank 0 has become in the end is sent back
and put into the caller's own objects: weights, optimizers, callbacks, counters, metrics.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from lightning_fabric.utilities.seed import _collect_rng_states, _set_rng_states, reset_seed
from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loops.loop import _Loop
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.strategies.launchers.launcher import _Launcher
from pytorch_lightning.trainer.connectors.signal_connector import _SignalConnector
from pytorch_lightning.trainer.states import TrainerFn

from yolox.trainer.arguments import ignore_foreign_warnings, silence_advertisements
from yolox.trainer.launchers.base import Launcher, Phase, Slot, Worker
from yolox.trainer.launchers.supervise import describe_stop
from yolox.trainer.log_settings import LogSettings, WarningFilters
from yolox.trainer.sharded_batch_sampler import shard_loader
from yolox.trainer.slot_environment import SlotEnvironment
from yolox.trainer.state_transfer import StateTransfer
from yolox.trainer.sync_batchnorm import SyncBatchNormLayers

_log = logging.getLogger(__name__)
_TIMEOUT = timedelta(minutes=30)  # of one collective; the supervisor notices a hang long before


class LauncherStrategy(DDPStrategy):
    """Data-parallel training on CPUs in the processes of one of our launchers.

    Args:
        launcher: Starts the processes; None where this process is one of them already.
        slots: One for each process.
        process_group: ``gloo``, ``ccl`` or ``mpi``.
        worker: The place of this process, if it is one of them.
        ddp_arguments: For ``DistributedDataParallel``.
    """

    def __init__(
        self,
        launcher: Launcher | None,
        slots: Sequence[Slot],
        process_group: str,
        worker: Worker | None = None,
        **ddp_arguments: Any,
    ) -> None:
        self.slots = tuple(slots)
        self.environment = SlotEnvironment(len(self.slots))
        self.environment.worker = worker
        super().__init__(
            cluster_environment=self.environment, process_group_backend=process_group, timeout=_TIMEOUT, **ddp_arguments
        )
        self.process_launcher = launcher
        self.shard_seed = 0

    @property
    def root_device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    @property
    def num_processes(self) -> int:
        """The number of ranks; Lightning's count of machines is not used."""
        return len(self.slots)

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """The number of ranks and this rank, for the samplers that Lightning makes."""
        return {"num_replicas": len(self.slots), "rank": self.global_rank}

    def set_world_ranks(self) -> None:
        """Tell Lightning's logging which rank this is."""
        vars(rank_zero_only)["rank"] = self.global_rank  # Lightning keeps it as an attribute of the function

    def _configure_launcher(self) -> None:
        self._launcher = None if self.process_launcher is None else _Bridge(self, self.process_launcher)

    def setup_distributed(self) -> None:
        """Join the other ranks."""
        reset_seed()
        self.set_world_ranks()
        worker = self.environment.worker
        if worker is None:
            raise RuntimeError("the strategy is set up outside a worker; start it through Trainer.fit")
        if not dist.is_initialized():
            dist.init_process_group(
                self.process_group_backend,
                init_method=worker.rendezvous,
                rank=worker.slot.rank,
                world_size=worker.slot.world,
                timeout=_TIMEOUT,
            )

    def process_dataloader(self, dataloader: object) -> object:
        """Take this rank's share of every batch; predictions are all made by rank 0, which returns them."""
        module = self.lightning_module
        if module is not None and module.trainer.state.fn == TrainerFn.PREDICTING:
            return dataloader
        return shard_loader(dataloader, self.global_rank, self.world_size, self.shard_seed)

    def teardown(self) -> None:
        """Undo `setup`; where nothing was set up, in the caller's process, there is nothing to undo."""
        if self.environment.worker is not None:
            super().teardown()


class _Bridge(_Launcher):
    """Lightning's side of a launcher."""

    def __init__(self, strategy: LauncherStrategy, launcher: Launcher) -> None:
        self.strategy = strategy
        self.launcher = launcher

    @property
    def is_interactive_compatible(self) -> bool:
        return True

    def launch(self, function: Callable[..., Any], *args: Any, trainer: pl.Trainer | None = None, **kwargs: Any) -> Any:
        if trainer is None:
            raise TypeError("only the methods of a trainer can be launched; got no trainer")
        for logger in trainer.loggers:
            _ = logger.version  # chosen here, so that this process and the workers write to the same place
        self.strategy.shard_seed = int(torch.randint(2**31, ()).item())
        task = _Task(trainer, function, args, kwargs, _collect_rng_states(include_cuda=False))
        transfer = self.launcher.run(task, self.strategy.slots)[0]
        return _put_back(trainer, transfer)

    def kill(self, signum: Any) -> None:
        """Do nothing: the supervisor of the processes does."""


class _HeartbeatCallback(Callback):
    """Tells the supervisor of a worker what it does next.

    Args:
        beat: The worker's own.
    """

    def __init__(self, beat: Callable[[Phase], None]) -> None:
        self.beat = beat

    def on_train_batch_start(self, *_: Any) -> None:
        self.beat("step")

    def on_train_batch_end(self, *_: Any) -> None:
        self.beat("data")

    def _other(self, *_: Any) -> None:
        self.beat("other")

    on_train_epoch_start: Any = _other
    on_train_epoch_end: Any = _other
    on_validation_start: Any = _other
    on_validation_batch_start: Any = _other
    on_validation_end: Any = _other


class _Task:
    """The work of every rank: the trainer's own method, in a process group."""

    def __init__(
        self, trainer: pl.Trainer, function: Callable[..., Any], args: Any, kwargs: Any, random_states: dict[str, Any]
    ) -> None:
        self.trainer = trainer
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self.random_states = random_states
        self.logs = [LogSettings.of(name) for name in ("", "yolox", "pytorch_lightning")]
        self.warnings = WarningFilters()

    def __call__(self, worker: Worker) -> StateTransfer | None:
        trainer = self.trainer
        strategy = trainer.strategy
        assert isinstance(strategy, LauncherStrategy)
        strategy.environment.worker = worker
        self.warnings.apply()
        ignore_foreign_warnings()
        silence_advertisements()
        for log in self.logs:
            log.apply()
        strategy.set_world_ranks()
        _set_rng_states(self.random_states)
        originals = list(trainer.callbacks)  # type: ignore[attr-defined]
        trainer.callbacks.append(_HeartbeatCallback(worker.beat))  # type: ignore[attr-defined]
        try:
            results = self.function(*self.args, **self.kwargs)
            worker.beat("other")
            transfer = _collect(trainer, originals, results)
        finally:
            trainer.callbacks[:] = [c for c in trainer.callbacks if not isinstance(c, _HeartbeatCallback)]  # type: ignore[attr-defined]
        if dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()
        return transfer if worker.slot.rank == 0 else None


def _collect(trainer: pl.Trainer, callbacks: list[Any], results: Any) -> StateTransfer:
    """Return what rank 0 sends home; every rank takes part, since a metric may have to be gathered."""
    checkpoint: dict[str, Any] = {}
    if trainer.state.fn == TrainerFn.FITTING:
        checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        for name in ("optimizer_states", "lr_schedulers"):  # the objects themselves are sent
            checkpoint.pop(name, None)
    connector = trainer._logger_connector
    return StateTransfer.pack(
        trainer,
        callbacks,
        checkpoint=checkpoint,
        results=results,
        metrics={
            "callback": dict(trainer.callback_metrics),
            "logged": dict(trainer.logged_metrics),
            "progress_bar": dict(connector.progress_bar_metrics),
        },
        optimizers=list(trainer.strategy.optimizers),
        schedulers=list(trainer.strategy.lr_scheduler_configs),
        status=trainer.state,
        should_stop=trainer.should_stop,
    )


def _put_back(trainer: pl.Trainer, transfer: StateTransfer) -> Any:
    """Give the caller's objects the state of rank 0; return what the method returned there."""
    content = transfer.unpack(trainer, list(trainer.callbacks))  # type: ignore[attr-defined]
    checkpoint = content["checkpoint"]
    trainer.state = content["status"]
    trainer.should_stop = content["should_stop"]
    module = trainer.lightning_module
    if "state_dict" in checkpoint:
        module.trainer = trainer
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"], strict=False)
        for name, loop in (
            ("fit_loop", trainer.fit_loop),
            ("validate_loop", trainer.validate_loop),
            ("test_loop", trainer.test_loop),
            ("predict_loop", trainer.predict_loop),
        ):
            loop.load_state_dict(checkpoint["loops"][name])
            _forget_restart(loop)
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        if datamodule is not None and type(datamodule).__qualname__ in checkpoint:
            datamodule.load_state_dict(checkpoint[type(datamodule).__qualname__])
        trainer.strategy._optimizers = content["optimizers"]
        trainer.strategy.lr_scheduler_configs = content["schedulers"]
    connector = trainer._logger_connector
    connector._callback_metrics.update(content["metrics"]["callback"])
    connector._logged_metrics.update(content["metrics"]["logged"])
    connector._progress_bar_metrics.update(content["metrics"]["progress_bar"])
    return content["results"]


def _forget_restart(loop: _Loop) -> None:
    """Leave the counters, but not the idea that the loop goes on from a checkpoint."""
    loop._restarting = loop._loaded_from_state_dict = loop._resuming_from_checkpoint = False
    loop.reset_restart_stage()
    for child in vars(loop).values():
        if isinstance(child, _Loop):
            _forget_restart(child)


class StopSignals(_SignalConnector):
    """Notes SIGTERM, and Ctrl-C in a fit, instead of acting inside the handler, where a collective may be under way."""

    stop_signal = 0
    stopping = False

    def register_signal_handlers(self) -> None:
        """Take over the signals for one run; Lightning gives them back afterwards."""
        existing = getattr(signal.getsignal(signal.SIGTERM), "__module__", None) or ""
        super().register_signal_handlers()
        self.stop_signal, self.stopping = 0, False
        # these handlers end the process at once, and Lightning would call them as well: Ray's and that of our commands
        if existing.startswith(("ray.", "yolox.")):
            self._register_signal(signal.SIGTERM, self._sigterm_notifier_fn)
        # a process started in the background of a script ignores Ctrl-C, and shall go on doing so
        if self.trainer.state.fn == TrainerFn.FITTING and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            self._register_signal(signal.SIGINT, self._sigterm_notifier_fn)

    def _sigterm_notifier_fn(self, signum: int, _: Any) -> None:
        if self.stopping:  # an exception while things are closed would only be printed
            return
        if self.stop_signal:
            self.stopping = True
            raise KeyboardInterrupt if signum == signal.SIGINT else SystemExit(128 + signum)
        self.stop_signal = signum
        if not isinstance(self.trainer.strategy, LauncherStrategy):  # else the supervisor has said so
            _log.warning("%s", describe_stop(signum))


def forget_rank() -> None:
    """Tell Lightning's logging that this is rank 0, whatever Slurm, LSF or another run left in the variables."""
    vars(rank_zero_only)["rank"] = 0  # Lightning has read it when it was imported


def set_counters_(checkpoint: dict[str, Any]) -> None:
    """Have the loops of a loaded checkpoint go on from its ``epoch`` (0-based, the next one) and ``global_step``.

    Those two entries are what a LightningModule may change in its `on_load_checkpoint`; Lightning itself goes on from
    the counters of its loops. Where they say the same, the place inside the epoch stays.
    """
    epoch, steps = int(checkpoint["epoch"]), int(checkpoint["global_step"])
    loop = checkpoint["loops"]["fit_loop"]
    done = loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"]
    if (loop["epoch_progress"]["current"]["completed"], done["completed"]) == (epoch, steps):
        return
    for progress in (loop["epoch_progress"]["current"], loop["epoch_progress"]["total"]):
        progress.update({key: epoch for key in progress if not isinstance(progress[key], bool)})
    done.update(ready=steps, completed=steps)


def install_stop_signals(trainer: pl.Trainer) -> None:
    """Have ``trainer`` note SIGTERM and Ctrl-C for `stop_requested`."""
    trainer._signal_connector = StopSignals(trainer)


def stop_requested(trainer: pl.Trainer) -> int:
    """Return the signal that came on any rank, 0 for none; every rank has to ask."""
    connector = trainer._signal_connector
    mine = connector.stop_signal if isinstance(connector, StopSignals) else 0
    if trainer.world_size == 1 or not dist.is_initialized():
        return mine
    anyone = torch.tensor([mine])
    dist.all_reduce(anyone, op=dist.ReduceOp.MAX)
    return int(anyone.item())


def ignore_more_stop_signals(trainer: pl.Trainer) -> None:
    """Have ``trainer`` end in order from now on, however often it is asked to stop."""
    if isinstance(connector := trainer._signal_connector, StopSignals):
        connector.stopping = True


def synchronise_batchnorm(trainer: pl.Trainer) -> None:
    """Have the batch normalisations use the statistics of all ranks during a fit."""
    if isinstance(trainer.strategy, LauncherStrategy):
        trainer.strategy._layer_sync = SyncBatchNormLayers()
