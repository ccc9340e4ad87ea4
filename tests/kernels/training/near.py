"""How tests of the kernels make and compare tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def channels_last(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape).to(dtype).contiguous(memory_format=torch.channels_last)


def assert_near(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    """Compare relative to the largest number: bf16 outputs are rounded, sums of them average that out."""
    found, wanted = found.detach().double(), wanted.detach().double()
    error = (found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-3)
    assert float(error) < tolerance
