"""`Trainer` has the layers of any LightningModule trained by the kernels, and leaves the module as it was."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from networks import MobileNet, ResNet, UNet
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from yolox.kernels.library import kernels
from yolox.kernels.training.acceleration import table
from yolox.trainer import Trainer


class Learner(pl.LightningModule):
    """Learns to give back numbers; with its layers in a module of its own."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.kernels: list[str] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, target = batch
        y = self(x).to(target.dtype)
        loss = F.mse_loss(y.mean(dim=(-1, -2)) if y.ndim == 4 else y, target)
        self.kernels = [row.kernel for row in table(self)]
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val", F.mse_loss(self(batch[0]).to(batch[1].dtype).mean(), batch[1].mean()))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def _fit(
    module: pl.LightningModule, precision: str, folder: Path, outputs: int, **arguments: Any
) -> pl.LightningModule:
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(16, 3, 32, 32, generator=generator), torch.randn(16, outputs, generator=generator))
    quiet: dict[str, Any] = dict.fromkeys(
        ("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "logger"), False
    )
    trainer = Trainer(max_epochs=1, precision=precision, default_root_dir=folder, **quiet)
    trainer.fit(module, DataLoader(data, batch_size=8), DataLoader(data, batch_size=8))
    return module


@pytest.mark.parametrize(("network", "outputs"), [(ResNet, 5), (MobileNet, 5), (UNet, 2)])
def test_networks_that_nobody_prepared(network: Any, outputs: int, tmp_path: Path) -> None:
    if kernels() is None:
        pytest.skip("no C++ compiler, or YOLOX_KERNELS=0")
    torch.manual_seed(0)
    start = Learner(network())
    before = [sorted(vars(part)) for part in start.network.modules()]
    exact = _fit(copy.deepcopy(start), "64", tmp_path, outputs).state_dict()
    moved = start.state_dict()
    for precision, tolerance in (("32", 1e-3), ("bf16", 0.2)):
        trained = _fit(copy.deepcopy(start), precision, tmp_path, outputs)
        assert any("normalisation" in kernel or "convolution" in kernel for kernel in trained.kernels)
        assert [sorted(vars(part)) for part in trained.network.modules()] == before
        for name, value in trained.state_dict().items():
            if value.is_floating_point() and "running" not in name and value.ndim > 1:
                error = (value.double() - exact[name]).norm() / (exact[name] - moved[name]).norm()
                assert float(error) < tolerance, (precision, name)


def test_a_fit_that_fails_leaves_the_module_as_it_was(tmp_path: Path) -> None:
    class Failing(Learner):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            super().training_step(batch, batch_idx)
            raise ArithmeticError("on purpose")

    module = Failing(ResNet())
    before = [sorted(vars(part)) for part in module.network.modules()]
    with pytest.raises(ArithmeticError, match="on purpose"):
        _fit(module, "32", tmp_path, 5)
    assert [sorted(vars(part)) for part in module.network.modules()] == before
