"""Small modules that the tests of the inference engine send to child processes."""

from __future__ import annotations

import os
import signal

import torch
from torch import Tensor, nn


class SmallClassifier(nn.Module):
    """3x16x16 images to 10 classes, in a few ms."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 16, 3, 1, 1), nn.ReLU()
        )
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


class SmallRows(nn.Module):
    """A convolution of each kind, SiLU, one output of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.SiLU())
        self.body = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.SiLU(), nn.Conv2d(16, 16, 1), nn.SiLU())
        self.out = nn.Conv2d(16, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.out(x + self.body(x)).flatten(2).transpose(1, 2)


class Treacherous(SmallClassifier):
    """Crashes when traced in fp32, and answers with another shape when traced in bf16."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            if not torch.is_autocast_enabled("cpu"):
                os.kill(os.getpid(), signal.SIGSEGV)
            return super().forward(x)[:, :5]
        return super().forward(x)


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("no forward today")


def sharing(model: object) -> dict[str, float]:
    """A metric of two numbers that refuses to measure one method."""
    method = model.manifest.method  # type: ignore[attr-defined]
    if method == "bf16":
        raise ArithmeticError("not this one")
    outputs = model(torch.ones(2, 3, 16, 16))  # type: ignore[operator]
    return {"quality": 0.5 if method == "original" else 0.45, "shape": float(outputs.shape[1])}


class CountingAccuracy:
    """Like a torchmetrics object: update, compute, reset."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.right = self.total = 0

    def update(self, prediction: Tensor, target: Tensor) -> None:
        self.right += int((prediction.argmax(1) == target).sum())
        self.total += len(target)

    def compute(self) -> Tensor:
        return torch.tensor(self.right / self.total)
