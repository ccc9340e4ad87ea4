"""The sides of ``train_throughput``: each trains in a process of its own, a step whenever the parent asks for one."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.side_process import CommandLine, timed_steps
from benchmarks.step_profile import StepProfile
from benchmarks.stock_detector import StockDetector
from yolox.config import Experiment
from yolox.cpu.allocator import keep_freed_memory
from yolox.experiments import get_experiment
from yolox.losses.detection_loss import detection_loss
from yolox.models.detector import build_detector
from yolox.structures import Batch, Size, Targets

OBJECTS_PER_IMAGE = 8
"""About what Mosaic images of COCO hold after cropping."""


def experiment_of(settings: dict[str, Any]) -> Experiment:
    """Return the experiment at one fixed input size, so that all steps cost the same."""
    base = get_experiment(settings["model"])
    size = settings["size"]
    data = replace(base.data, input_size=Size(size, size), random_size=(size // 32, size // 32))
    return replace(base, data=data, recipe=replace(base.recipe, max_epoch=100))


def random_batch(batch_size: int, size: int) -> Batch:
    """Return noise with a few objects in each image, in the memory format of the loader; the same in every process."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch_size, 3, size, size), dtype=torch.uint8, generator=generator)
    images = images.contiguous(memory_format=torch.channels_last)
    shape = (batch_size, OBJECTS_PER_IMAGE)
    sides = (torch.rand(*shape, 2, generator=generator) * 0.3 + 0.02) * size
    centres = torch.rand(*shape, 2, generator=generator) * size
    labels = torch.randint(0, 80, shape, generator=generator)
    targets = Targets(torch.cat([centres, sides], dim=-1), labels, torch.ones(shape, dtype=torch.bool))
    ids, sizes = torch.arange(batch_size), torch.full((batch_size, 2), size)
    return Batch(images, targets, ids, sizes, torch.zeros_like(ids))


def _stock_model(experiment: Experiment) -> nn.Module:
    torch.manual_seed(0)
    model = StockDetector(experiment.model)
    model.load_state_dict(build_detector(experiment.model).state_dict())
    return model.train()


def _loop(
    channel: CommandLine,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    targets: Targets,
    *,
    bf16: bool,
) -> None:
    for _ in timed_steps(channel, StepProfile):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            predictions = model(images)
        loss = detection_loss(predictions, targets, use_l1=False).total
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def stock(settings: dict[str, Any], channel: CommandLine) -> None:
    """Train as a tutorial does: eager, fp32, contiguous tensors, plain SGD, the allocator as it is."""
    experiment = experiment_of(settings)
    model = _stock_model(experiment)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, nesterov=True, weight_decay=5e-4)
    batch = random_batch(settings["batch_size"], settings["size"])
    _loop(channel, model, optimizer, batch.images.float().contiguous(), batch.targets, bf16=False)


def tuned(settings: dict[str, Any], channel: CommandLine) -> None:
    """Train as an expert does with PyTorch alone: channels_last, fused SGD, freed memory kept, autocast for bf16."""
    keep_freed_memory()
    experiment = experiment_of(settings)
    model = _stock_model(experiment).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True)
    batch = random_batch(settings["batch_size"], settings["size"])
    images = batch.images.float().contiguous(memory_format=torch.channels_last)
    _loop(channel, model, optimizer, images, batch.targets, bf16=settings["precision"] == "bf16")


def ipex(settings: dict[str, Any], channel: CommandLine) -> None:
    """As IPEX's examples train: ``ipex.optimize`` in bf16, channels_last and autocast; ``allocator`` sets ours."""
    import intel_extension_for_pytorch

    if settings["allocator"]:
        keep_freed_memory()
    experiment = experiment_of(settings)
    model = _stock_model(experiment).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, nesterov=True, weight_decay=5e-4)
    model, optimizer = intel_extension_for_pytorch.optimize(model, optimizer=optimizer, dtype=torch.bfloat16)
    batch = random_batch(settings["batch_size"], settings["size"])
    images = batch.images.float().contiguous(memory_format=torch.channels_last)
    _loop(channel, model, optimizer, images, batch.targets, bf16=True)


class _Loader:
    """Yields one batch over and over, whenever the parent asks for a step."""

    def __init__(self, batch: Batch, channel: CommandLine) -> None:
        self._batch, self._channel = batch, channel

    def __len__(self) -> int:
        return 1_000_000  # a known length keeps Lightning from fetching ahead

    def __iter__(self) -> Iterator[Batch]:
        for _ in timed_steps(self._channel, StepProfile):
            yield self._batch


def ours(settings: dict[str, Any], channel: CommandLine) -> None:
    """Train as ``yolox.tools.train`` does: its trainer, its module, its callbacks, averages and logging included."""
    from yolox.recipe.module import YoloxModule
    from yolox.tools import train
    from yolox.tools.training import build_trainer

    keep_freed_memory()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    experiment = experiment_of(settings)
    names = [f"class {number}" for number in range(experiment.model.num_classes)]
    module = YoloxModule(experiment, names, settings["batch_size"], steps_per_epoch=1000)
    # the tool's own parser, so that its defaults are measured whatever they become
    words = ["-n", settings["model"], "--precision", settings["precision"], *settings.get("words", ())]
    options = train.build_parser().parse(words)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        trainer = build_trainer(experiment, Path(folder), options)
        trainer.fit(module, _Loader(random_batch(settings["batch_size"], settings["size"]), channel))
