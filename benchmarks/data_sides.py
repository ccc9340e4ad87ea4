"""The sides of ``data_pipeline``, each in a process of its own."""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import torch

from benchmarks.side_process import CommandLine, timed_steps
from benchmarks.stock_pipeline import StockPipeline
from yolox.config import Experiment
from yolox.cpu.allocator import keep_freed_memory
from yolox.data.cache import open_cache
from yolox.data.coco_dataset import CocoDataset
from yolox.data.datamodule import YoloxDataModule, build_augmentation
from yolox.data.dataset_paths import load_split, resolve_dataset
from yolox.data.image_source import ImageSource
from yolox.data.sampling import SampleRequest
from yolox.data.training_samples import TrainingSamples
from yolox.experiments import get_experiment
from yolox.processes.inside import peak_memory_mb
from yolox.structures import Batch, Size

STAGES = ("read", "letterbox", "mosaic", "mosaic and mixup")
Stage = Callable[[int], Any]


def _serve_stages(channel: CommandLine, stages: dict[str, Stage], num_images: int) -> None:
    """Answer commands that name a stage with the seconds of so many samples, one after the other."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    index = 0
    for command in channel.commands():
        stage = stages[command["stage"]]
        seconds = []
        for _ in range(command["steps"]):
            start = time.perf_counter()
            stage(index % num_images)
            seconds.append(time.perf_counter() - start)
            index += 1
        channel.reply(seconds=seconds, peak_memory_mb=peak_memory_mb())


def _train_set(folder: str) -> CocoDataset:
    return load_split(resolve_dataset(folder).require("train"))


def our_stages(settings: dict[str, Any], channel: CommandLine) -> None:
    """Make samples with ``yolox.data``; ``cache`` is that of the data, ``reduced_decode`` its option."""
    keep_freed_memory()
    dataset = _train_set(settings["folder"])
    data = get_experiment(settings["model"]).data
    target = Size(settings["size"], settings["size"])
    reduced = settings["reduced_decode"]
    cache = open_cache(settings["cache"], dataset, target, reduced_decode=reduced)
    source = ImageSource(dataset, target, reduced_decode=reduced, cache=cache)
    base = build_augmentation(replace(data, input_size=target, mosaic_prob=1.0, mixup_prob=1.0))
    plain = TrainingSamples(source, replace(base, mixup_prob=0.0))
    mixed = TrainingSamples(source, base)

    def sample(samples: TrainingSamples, mosaic: bool) -> Stage:
        return lambda index: samples[SampleRequest(index, mosaic, 0, index)]

    stages: dict[str, Stage] = {"read": source.sample, "letterbox": sample(plain, False), "mosaic": sample(plain, True)}
    _serve_stages(channel, {**stages, "mosaic and mixup": sample(mixed, True)}, len(dataset))


def stock_stages(settings: dict[str, Any], channel: CommandLine) -> None:
    """Make samples with the pipeline in official style."""
    scales = get_experiment(settings["model"]).data.mosaic_scale
    pipeline = StockPipeline(Path(settings["folder"]), settings["size"], scales)
    stages: dict[str, Stage] = {"read": pipeline.read, "letterbox": pipeline.single, "mosaic": pipeline.mosaic}
    stages["mosaic and mixup"] = lambda index: pipeline.mosaic(index, mixup=True)
    _serve_stages(channel, stages, len(pipeline.paths))


class _Asked:
    """Training batches, one whenever the parent asks for a step: from the loader, or a few kept ones over and over."""

    def __init__(self, loader: Any, channel: CommandLine, keep: int) -> None:
        self._channel = channel
        self._batches: Iterator[Batch] = self._endless(loader)
        if keep:
            kept = [next(self._batches) for _ in range(keep)]
            loader.close()
            self._batches = (kept[number % keep] for number in range(1_000_000))

    def _endless(self, loader: Any) -> Iterator[Batch]:
        while True:
            yield from loader

    def __len__(self) -> int:
        return 1_000_000

    def __iter__(self) -> Iterator[Batch]:
        for _ in timed_steps(self._channel):
            yield next(self._batches)


def training_experiment(settings: dict[str, Any]) -> Experiment:
    """Return the experiment of ``train``: published augmentation, one input size."""
    base = get_experiment(settings["model"])
    size = Size(settings["size"], settings["size"])
    units = settings["size"] // 32
    data = replace(base.data, input_size=size, random_size=(units, units), data_dir=settings["folder"])
    return replace(
        base,
        data=replace(data, cache=settings["cache"], data_num_workers=settings.get("workers")),
        recipe=replace(base.recipe, max_epoch=100),
    )


def train(settings: dict[str, Any], channel: CommandLine) -> None:
    """Train with the tool's trainer, from files (``cache`` as given) or, with ``keep``, on batches kept in memory."""
    from yolox.recipe.module import YoloxModule
    from yolox.tools import train
    from yolox.tools.training import build_trainer

    keep_freed_memory()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    experiment = training_experiment(settings)
    batch_size = settings["batch_size"]
    words = ["-n", settings["model"], "--precision", settings["precision"], "-b", str(batch_size)]
    options = train.build_parser().parse([*words, "--logger", "none"])
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        trainer = build_trainer(experiment, Path(folder), options)
        data = YoloxDataModule(experiment.data, batch_size=batch_size, test_size=experiment.eval.test_size)
        module = YoloxModule(experiment, data.class_names, batch_size, steps_per_epoch=1000)
        trainer.fit(module, _Asked(data.train_dataloader(), channel, settings["keep"]))
