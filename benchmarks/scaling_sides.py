"""The side of ``scaling`` that trains on several processes through our trainer."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl

from benchmarks.side_process import CommandLine
from benchmarks.training_sides import experiment_of, random_batch
from yolox.structures import Batch


class _Repeated:
    """The same batch, so many times an epoch."""

    def __init__(self, batch: Batch, steps: int) -> None:
        self._batch, self._steps = batch, steps

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self._steps):
            yield self._batch


class MemoryData(pl.LightningDataModule):
    """Batches from memory: every rank has its share of the total.

    Args:
        batch_size: Total over all processes.
        size: Side of the images.
        steps: Steps of an epoch.
    """

    def __init__(self, batch_size: int, size: int, steps: int) -> None:
        super().__init__()
        self.batch_size, self.size, self.steps = batch_size, size, steps

    def train_dataloader(self) -> _Repeated:
        """Return this rank's batches."""
        world = self.trainer.world_size if self.trainer is not None else 1
        return _Repeated(random_batch(self.batch_size // world, self.size), self.steps)


def processes(settings: dict[str, Any], channel: CommandLine) -> None:
    """Answer each command with the images/s of the last epoch of a short fit."""
    from yolox.recipe.module import YoloxModule
    from yolox.trainer import Trainer
    from yolox.trainer.callbacks import Throughput

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    experiment = experiment_of(settings)
    names = [f"class {number}" for number in range(experiment.model.num_classes)]
    for command in channel.commands():
        throughput = Throughput()
        trainer = Trainer(
            num_processes=None if settings["cpus"] else settings["processes"],
            cpu_for_each_process=settings["cpus"],
            channels_last=True,
            precision=settings["precision"],
            max_epochs=2,
            callbacks=[throughput],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        module = YoloxModule(experiment, names, settings["batch_size"], steps_per_epoch=1000)
        trainer.fit(module, datamodule=MemoryData(settings["batch_size"], settings["size"], command["steps"]))
        threads = [slot.threads for slot in trainer.plan.slots]
        channel.reply(images_per_second=throughput.epochs[-1]["images_per_second"], threads=threads)
