"""The smallest module that shows every effect: convolution, batch normalisation, linear layer, momentum."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from yolox.trainer.trainer import Trainer

QUIET = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        ".*does not have many workers",  # advice that does not matter for eight samples
        "The number of training batches",
        ".*no `val_dataloader`",
        "Checkpoint directory .* exists and is not empty",
        "You called `self.log",
        "Trainer already configured with model summary callbacks",
    )
]
"""Lightning's advice, which a test may ignore."""


class TinyModule(pl.LightningModule):
    def __init__(self, normalise: bool = False) -> None:
        super().__init__()
        norm = nn.BatchNorm2d(4) if normalise else nn.Identity()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.SiLU(), nn.Flatten(), nn.Linear(4 * 36, 1))
        self.steps_seen = 0

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.steps_seen += 1
        loss = (self.net(batch[0]).float() - batch[1]).square().mean()
        self.log("loss", loss, sync_dist=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_loss", (self.net(batch[0]).float() - batch[1]).square().mean(), sync_dist=True)

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        result: Tensor = self.net(batch[0])
        return result

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.SGD(self.parameters(), 0.02, momentum=0.9)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.8)}


def make_module(normalise: bool = False) -> TinyModule:
    torch.manual_seed(7)
    return TinyModule(normalise)


def make_loader(samples: int = 16, batch_size: int = 8) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(samples, 3, 8, 8, generator=generator)
    return DataLoader(TensorDataset(images, images.mean((1, 2, 3))[:, None] * 5), batch_size=batch_size)


def make_trainer(folder: Any, **arguments: Any) -> Trainer:
    settings = {
        "max_epochs": 2,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": str(folder),
        "num_sanity_val_steps": 0,
    }
    return Trainer(**{**settings, **arguments})
