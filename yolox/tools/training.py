"""The trainer of the training tool: options turned into arguments, callbacks and loggers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from yolox.config import Experiment, experiment_to_dict
from yolox.errors import MissingDependencyError, UsageError

__all__ = ["LOGGERS", "STRATEGIES", "build_trainer"]

STRATEGIES = ("subprocess", "spawn", "ray", "spark")
LOGGERS = ("tensorboard", "wandb", "mlflow", "none")


def build_trainer(experiment: Experiment, folder: Path, args: argparse.Namespace) -> Any:
    """Return the trainer of a run with its callbacks, loggers and files in ``folder``."""
    from yolox.recipe.callbacks import LATEST, CheckpointFiles, Evaluation
    from yolox.recipe.epoch_log import EpochLog
    from yolox.recipe.finite import FiniteValues
    from yolox.trainer.callbacks import LiveProgress, Throughput, TraceProfile
    from yolox.trainer.run_report import RunReport
    from yolox.trainer.trainer import Trainer

    _quiet_lightning()
    recipe = experiment.recipe
    history = recipe.max_history_ckpt if recipe.save_history_ckpt else 0
    progress = LiveProgress(recipe.print_interval, ("train/total", "train/iou", "train/objectness", "train/classes"))
    evaluation = Evaluation(experiment, before_training=args.ckpt is not None and not args.resume)
    callbacks = [FiniteValues(), Throughput(), progress, evaluation, EpochLog(folder), CheckpointFiles(folder, history)]
    callbacks.append(RunReport(folder / "run.json", {"experiment": experiment_to_dict(experiment)}))
    if args.profile:
        callbacks.append(TraceProfile(folder / "trace.json"))
    return Trainer(
        num_processes=args.num_processes,
        use_ipex=args.use_ipex,
        distributed_backend=args.strategy,
        process_group_backend=args.process_group_backend,
        cluster=args.cluster,
        cpu_for_each_process=_cpu_lists(args.cpu_for_each_process),
        channels_last=True,
        precision=args.precision,
        strict=args.strict,
        fp32_modules=args.fp32_modules,
        bf16_operations=args.hmp_bf16,
        fp32_operations=args.hmp_fp32,
        max_restarts=args.max_restarts,
        stop_checkpoint=folder / LATEST,
        accelerator=args.accelerator,
        sync_batchnorm=args.sync_bn,
        max_epochs=recipe.max_epoch,
        callbacks=callbacks,
        logger=_logger(args.logger, folder, experiment.exp_name),
        default_root_dir=str(folder),
        log_every_n_steps=recipe.print_interval,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        enable_model_summary=False,
    )


def _quiet_lightning() -> None:
    """Keep away lines that tell the user of this tool nothing: absent GPUs, and an evaluation that is ours."""
    import logging
    import warnings

    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message="The number of training batches .* is smaller than the logging interval")
    warnings.filterwarnings("ignore", message=r"It is recommended to use `self.log\('val/")
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")


def _cpu_lists(text: str | None) -> list[list[int]] | None:
    """Return the thread ids of ``0-3;4,5``, one list for each process."""
    if text is None:
        return None
    try:
        return [
            [cpu for part in process.split(",") for cpu in _cpu_range(*part.strip().split("-"))]
            for process in text.split(";")
        ]
    except (ValueError, TypeError) as error:
        raise UsageError(f"--cpu_for_each_process got '{text}', expected ids such as '0-3;4-7'.") from error


def _cpu_range(first: str, last: str | None = None) -> range:
    return range(int(first), int(first if last is None else last) + 1)


def _logger(name: str, folder: Path, run: str) -> Any:
    """Return Lightning's logger of that name, or False."""
    from pytorch_lightning import loggers

    if name == "none":
        return False
    try:
        if name == "wandb":
            return loggers.WandbLogger(name=run, save_dir=folder)
        if name == "mlflow":
            return loggers.MLFlowLogger(experiment_name=run, save_dir=str(folder / "mlruns"))
        return loggers.TensorBoardLogger(folder, name="", version="tensorboard")
    except ModuleNotFoundError as error:
        raise MissingDependencyError(name, f"pip install {name}") from error
