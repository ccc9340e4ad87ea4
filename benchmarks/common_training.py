"""Sides of ``train_throughput`` that train other networks than YOLOX: a loop of PyTorch's, and our `Trainer`."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common_networks import TRAINED
from benchmarks.side_process import CommandLine, timed_steps
from benchmarks.step_profile import StepProfile
from yolox.cpu.allocator import keep_freed_memory
from yolox.trainer import Trainer

_RATE = 1e-3


def _network(settings: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    return TRAINED[settings["model"]]().train()


def _batch(settings: dict[str, Any], network: nn.Module) -> tuple[Tensor, Tensor]:
    """Return noise, and a class for each image or for each pixel, as the network predicts them."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(settings["batch_size"], 3, settings["size"], settings["size"], generator=generator)
    with torch.no_grad():
        shape = network.eval()(images[:1]).shape
    network.train()
    return images, torch.randint(0, shape[1], (len(images), *shape[2:]), generator=generator)


def _loop(channel: CommandLine, network: nn.Module, batch: tuple[Tensor, Tensor], *, fused: bool, bf16: bool) -> None:
    optimizer = torch.optim.SGD(network.parameters(), lr=_RATE, momentum=0.9, weight_decay=5e-4, fused=fused)
    images, classes = batch
    for _ in timed_steps(channel, StepProfile):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(network(images), classes)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def stock(settings: dict[str, Any], channel: CommandLine) -> None:
    """Train as a tutorial does: eager, fp32, contiguous tensors, plain SGD, the allocator as it is."""
    network = _network(settings)
    _loop(channel, network, _batch(settings, network), fused=False, bf16=False)


def tuned(settings: dict[str, Any], channel: CommandLine) -> None:
    """Train as an expert does with PyTorch alone: channels_last, fused SGD, freed memory kept, autocast for bf16."""
    keep_freed_memory()
    network = _network(settings).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images, classes = _batch(settings, network)
    batch = images.contiguous(memory_format=torch.channels_last), classes
    _loop(channel, network, batch, fused=True, bf16=settings["precision"] == "bf16")


class _Module(pl.LightningModule):
    """As anyone writes one: nothing in it knows of our kernels."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        images, classes = batch
        return F.cross_entropy(self.network(images), classes)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=_RATE, momentum=0.9, weight_decay=5e-4)


class _Loader:
    def __init__(self, batch: tuple[Tensor, Tensor], channel: CommandLine) -> None:
        self._batch, self._channel = batch, channel

    def __len__(self) -> int:
        return 1_000_000  # a known length keeps Lightning from fetching ahead

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in timed_steps(self._channel, StepProfile):
            yield self._batch


def ours(settings: dict[str, Any], channel: CommandLine) -> None:
    """Train a LightningModule with `yolox.trainer.Trainer`."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    network = _network(settings)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        trainer = Trainer(
            precision=settings["precision"],
            channels_last=True,
            max_epochs=1,
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(_Module(network), _Loader(_batch(settings, network), channel))
