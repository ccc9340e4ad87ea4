"""Maxima over windows around each pixel, against PyTorch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolox.kernels.training.acceleration import accelerate, table
from yolox.kernels.training.autograd import max_pool


def _pair(pooled: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    weights = torch.randint(-3, 4, pooled.shape, generator=generator).to(pooled.dtype)
    return pooled.detach(), torch.autograd.grad(pooled, x, weights)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("side", [1, 3, 5, 13, 15])
@pytest.mark.parametrize("shape", [(2, 16, 7, 5), (1, 48, 1, 9), (3, 32, 13, 13)])
def test_values_and_gradients(dtype: torch.dtype, side: int, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-4, 5, shape, generator=generator).to(dtype)  # many of them equal, sums without rounding
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    ours = _pair(max_pool(x, side), x)
    exact = _pair(F.max_pool2d(x.double(), side, 1, side // 2), x)
    assert torch.equal(ours[0].double(), exact[0])
    assert torch.equal(ours[1].double(), exact[1].double())


def test_infinite_values_and_those_that_are_no_numbers() -> None:
    x = torch.zeros(1, 16, 4, 4).contiguous(memory_format=torch.channels_last)
    x[0, 0, 1, 1], x[0, 1, 2, 2], x[0, 2] = float("nan"), float("inf"), float("-inf")
    assert torch.equal(max_pool(x, 3).nan_to_num(7), F.max_pool2d(x, 3, 1, 1).nan_to_num(7))


class _Pools(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.layer = nn.MaxPool2d(5, 1, 2)
        self.other = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(self.bn(self.conv(x)))
        return self.other(F.max_pool2d(y, kernel_size=3, stride=1, padding=1))


def test_the_plan_chooses_it_where_it_can() -> None:
    torch.manual_seed(0)
    plain = _Pools().train()
    x = torch.randn(2, 16, 8, 6).contiguous(memory_format=torch.channels_last)
    expected = plain(x)
    gradient = torch.autograd.grad(expected.square().sum(), plain.conv.weight)[0]
    module = accelerate(plain)
    found = module(x)
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(torch.autograd.grad(found.square().sum(), plain.conv.weight)[0], gradient, atol=1e-3)
    kernels = {row.layer: row.kernel for row in table(module)}
    assert kernels["layer"] == kernels["max_pool2d"] == "maxima over windows"
    assert kernels["other"] == "PyTorch"
