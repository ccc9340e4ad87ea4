"""The trainer of the training tool: options turned into arguments, callbacks and loggers."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from yolox.config import Experiment, experiment_to_dict
from yolox.errors import MissingDependencyError, UsageError
from yolox.tools.arguments import positive_int
from yolox.tools.parser import ToolParser

STRATEGIES = ("subprocess", "spawn", "ray", "spark")
LOGGERS = ("tensorboard", "wandb", "mlflow", "none")


_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0}


def add_recipe_arguments(parser: ToolParser) -> None:
    """Add the options that say when a run ends and what it trains; most are fields of the experiment, too."""
    group = parser.add_argument_group("what is trained, and how long")
    group.add_argument("--steps", type=positive_int, metavar="N", help="end after N steps")
    group.add_argument("--patience", type=positive_int, metavar="N", help="stop after N epochs without a better AP")
    group.add_argument("--time", type=_duration, metavar="TIME", help="stop after the step that uses it up: 2h, 1h30m")
    group.add_argument("--freeze", metavar="PARTS", help="parts that stay as they are: backbone,head.stems.*")
    group.add_argument("--no-multiscale", action="store_true", help="train at input_size alone")
    group.add_argument("--accumulate", type=positive_int, metavar="N", help="batches whose gradients make one step (1)")
    group.add_argument("--clip", type=float, metavar="X", help="cut the norm of the gradients to X")


def recipe_fields(args: argparse.Namespace) -> dict[str, object]:
    """Return the fields of the experiment that the options of `add_recipe_arguments` name."""
    names = ("steps", "patience", "freeze", "accumulate", "clip")
    given: dict[str, object] = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.no_multiscale:
        given.update(multiscale_range=0, random_size=None)
    return given


def _duration(text: str) -> float:
    """Convert ``2h``, ``1h30m`` or ``45s`` to seconds."""
    parts = re.findall(r"([\d.]+)([hms])", text) if re.fullmatch(r"(\d+(\.\d+)?[hms])+", text) else []
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"got '{text}', expected a time such as 2h, 1h30m or 45s")
    return seconds


def build_trainer(experiment: Experiment, folder: Path, args: argparse.Namespace) -> Any:
    """Return the trainer of a run with its callbacks, loggers and files in ``folder``."""
    from yolox.recipe.callbacks import LATEST
    from yolox.trainer.trainer import Trainer

    _quiet_lightning()
    recipe = experiment.recipe
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
        max_steps=recipe.steps or -1,
        accumulate_grad_batches=recipe.accumulate,
        gradient_clip_val=recipe.clip,
        callbacks=_callbacks(experiment, folder, args),
        logger=_logger(args, folder, experiment),
        default_root_dir=str(folder),
        log_every_n_steps=recipe.print_interval,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        enable_model_summary=False,
    )


def _callbacks(experiment: Experiment, folder: Path, args: argparse.Namespace) -> list[Any]:
    """Return what happens around the steps of a run, in its order."""
    from yolox.recipe.callbacks import CheckpointFiles, Evaluation, TimeBudget
    from yolox.recipe.epoch_log import EpochLog
    from yolox.recipe.finite import FiniteValues
    from yolox.recipe.html_report import HtmlReport
    from yolox.trainer.callbacks import Throughput, TraceProfile
    from yolox.trainer.live_progress import LiveProgress
    from yolox.trainer.run_report import RunReport

    recipe = experiment.recipe
    history = recipe.max_history_ckpt if recipe.save_history_ckpt else 0
    losses = tuple(f"train/{name}" for name in ("total", "iou", "objectness", "classes"))
    asked = "recipe.print_interval" in experiment.given
    progress = LiveProgress(recipe.print_interval if asked else None, losses)
    evaluation = Evaluation(experiment, args.ckpt is not None and not args.resume, folder)
    files = CheckpointFiles(folder, history, every_epochs=recipe.ckpt_interval, every_steps=recipe.ckpt_interval_steps)
    finite = FiniteValues(recipe.on_nonfinite, files.latest)
    callbacks = [finite, Throughput(losses), progress, evaluation, EpochLog(folder), files]
    if args.time is not None:
        callbacks.insert(0, TimeBudget(args.time))  # before the checkpoints, which look whether the run ends
    callbacks.append(RunReport(folder / "run.json", {"experiment": experiment_to_dict(experiment)}))
    callbacks.append(HtmlReport(folder))  # of what the others have written
    if args.profile:
        callbacks.append(TraceProfile(folder / "trace.json"))
    return callbacks


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


def _logger(args: argparse.Namespace, folder: Path, experiment: Experiment) -> Any:
    """Return Lightning's logger of the name asked for, or False.

    Raises:
        MissingDependencyError: When it needs a library that is not installed, and the run is a strict one.
    """
    from pytorch_lightning import loggers

    from yolox.trainer.forgiving_logger import ForgivingLogger, OwnRunWandbLogger

    name, run = args.logger, experiment.exp_name
    if name == "none":
        return False
    services: dict[str, Callable[[], Any]] = {
        "wandb": partial(OwnRunWandbLogger, run, str(folder)),
        "mlflow": partial(_mlflow_logger, run, f"sqlite:///{folder.absolute()}/mlflow.db"),
    }
    if name in services and find_spec(name) is not None:
        return ForgivingLogger(name, services[name], experiment_to_dict(experiment))
    if name in services:
        missing = MissingDependencyError(name, f"pip install 'yolox-cpu[{name}]'")
        if args.strict:
            raise missing
        print(f"note: {missing} This run is logged to TensorBoard.")
    return loggers.TensorBoardLogger(folder, name="", version="tensorboard")


def _mlflow_logger(run: str, file: str) -> Any:
    """Return the logger to the server of ``MLFLOW_TRACKING_URI``, or else to a file."""
    from pytorch_lightning.loggers import MLFlowLogger

    # a server that does not answer holds the run up for a few seconds; by default for minutes
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    return MLFlowLogger(run, tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or file)
