"""``train -b auto``: the largest batch whose step fits into the memory that this process may use.

The memory of a step grows with the images in it by a constant. It is measured in another process, which takes real
steps with one and with three images of the largest size that the run has.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

from yolox.config import Experiment
from yolox.errors import UsageError, YoloxError

_LARGEST = 64  # the batch of the official recipe; more images a step do not make a CPU faster
_SHARE = 0.7  # of the available memory; the rest is for loaders, their cache and the evaluation
_FEW, _SOME = 1, 3  # images of the measured steps
_SECONDS = 600.0
_GIB = 2**30


@dataclass(frozen=True)
class StepMemory:
    """The peak memory of a training process: ``base`` + ``per_image`` for each of its images, in bytes."""

    base: float
    per_image: float


@dataclass(frozen=True)
class Measured:
    """The peak memory in bytes of a process whose steps had so many images."""

    images: int
    peak: float


def choose_batch(memory: StepMemory, available: float, num_processes: int, num_images: int) -> tuple[int, str]:
    """Return the total batch, and the line that says why; a pure function.

    It is the largest of 64, 32, 16 ... images a process that fits, shared by all processes at most 64, and at most the
    whole data set.

    Args:
        memory: Of one process.
        available: Bytes for all processes.
        num_processes: Processes on this machine that share a batch.
        num_images: Training images.

    Raises:
        YoloxError: When one image a process does not fit.
    """
    room = _SHARE * available / num_processes
    asked = (
        f"{memory.base / _GIB:.2f} GiB and {memory.per_image / _GIB:.2f} GiB an image in each of {num_processes} "
        f"process(es), of {_SHARE:.0%} of the {available / _GIB:.1f} GiB available"
    )
    if memory.base + memory.per_image > room:
        raise YoloxError(
            f"-b auto: one image does not fit into memory: a step takes {asked}. Use a smaller model or input_size, "
            "precision bf16, or fewer processes."
        )
    most = min(_LARGEST, num_images) / num_processes
    share = 1
    while 2 * share <= most and memory.base + memory.per_image * 2 * share <= room:
        share *= 2
    fits = memory.base + memory.per_image * 2 * share <= room
    bound = f"; {2 * share * num_processes} would be more than {'the data set' if num_images < _LARGEST else _LARGEST}"
    return share * num_processes, f"batch {share * num_processes} (auto): a step takes {asked}{bound if fits else ''}"


def auto_batch(args: argparse.Namespace, experiment: Experiment, num_images: int) -> int:
    """Measure steps in another process, print why and return the total batch of a run.

    Args:
        args: The options of the training.
        experiment: The run, with the number of its classes.
        num_images: Training images.

    Raises:
        UsageError: When the steps are taken where this process cannot measure.
        YoloxError: When a step does not fit, or could not be measured.
    """
    from yolox.cpu.cgroups import available_memory
    from yolox.trainer.launchers.joined import joined_rank

    processes = args.num_processes or len((args.cpu_for_each_process or "").split(";"))
    elsewhere = {
        "processes that torchrun or srun has started": joined_rank(os.environ) is not None,
        f"--strategy {args.strategy}": args.strategy in ("ray", "spark") and processes > 1,
        f"--accelerator {args.accelerator}": args.accelerator != "cpu",
    }
    for what, true in elsewhere.items():
        if true:
            raise UsageError(f"-b auto measures the memory of processes of this machine, not of {what}. Give a number.")
    available = available_memory()
    if available is None:
        raise UsageError("-b auto: this system does not tell how much memory is available. Give -b a number.")
    batch, why = choose_batch(measure(experiment, args.precision), available, processes, num_images)
    print(why)
    return batch


def measure(experiment: Experiment, precision: str) -> StepMemory:
    """Return the memory of a training process, from steps that another process takes.

    Raises:
        YoloxError: When not even one image can be trained on.
    """
    from yolox.config import experiment_to_dict
    from yolox.processes.start import Process, ProcessFailure, Program

    program = Program(f"{__name__}:take_steps", (experiment_to_dict(_at_largest_size(experiment)), precision))
    process = Process(program, (Measured,))
    process.doing = "measuring a step"
    try:
        few = process.receive(_SECONDS)
        process.doing = f"measuring a step of {_SOME} images"
        some = process.receive(_SECONDS)
    except ProcessFailure as failure:
        raise YoloxError(
            f"-b auto: the memory of a step could not be measured: the process {failure.reason}. Give -b a number."
        ) from failure
    finally:
        process.stop()
    per_image = max(0.0, some.peak - few.peak) / (some.images - few.images)
    return StepMemory(few.peak - few.images * per_image, per_image)


def _at_largest_size(experiment: Experiment) -> Experiment:
    """Return the experiment with the largest size of multi-scale training as its only one."""
    from yolox.recipe.schedule import trained_sizes

    largest = trained_sizes(experiment.data.input_size, experiment.data.size_range)[1]
    data = replace(experiment.data, input_size=largest, multiscale_range=0, random_size=None)
    return replace(experiment, data=data)


def take_steps(connection: Connection, experiment: Mapping[str, Any], precision: str) -> int:
    """Train on a few, then on some more grey images; send `Measured` after each, and return the exit code."""
    import pytorch_lightning as pl
    import torch
    from torch.utils.data import DataLoader

    from yolox.config import experiment_from_dict
    from yolox.processes.inside import peak_memory_mb
    from yolox.processes.messages import Channel
    from yolox.recipe.module import YoloxModule
    from yolox.structures import Batch, Targets
    from yolox.trainer.trainer import Trainer

    settings = experiment_from_dict(experiment)
    height, width = settings.data.input_size
    channel = Channel(connection, ())

    def batch_of(images: int) -> Batch:
        box = torch.tensor([width / 2, height / 2, width / 4, height / 4]).expand(images, 20, 4)
        targets = Targets(box, torch.zeros(images, 20, dtype=torch.int64), torch.ones(images, 20, dtype=torch.bool))
        pixels = torch.randint(0, 256, (images, 3, height, width), dtype=torch.uint8)
        ids = torch.arange(images)
        return Batch(pixels, targets, ids, torch.tensor([[height, width]] * images), torch.zeros_like(ids))

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
            if batch_idx % 2 == 1:  # the second step of a size has all buffers
                channel.send(Measured(len(batch.images), 1e6 * (peak_memory_mb() or 0.0)))

    batches = [batch_of(images) for images in (_FEW, _FEW, _SOME, _SOME)]
    names = [str(index) for index in range(settings.model.num_classes)]
    trainer = Trainer(
        precision=precision,
        channels_last=True,
        max_epochs=1,
        callbacks=[Watch()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader[Batch](batches, batch_size=None)  # type: ignore[arg-type]
    trainer.fit(YoloxModule(settings, names, _SOME, len(batches)), loader)
    return 0
