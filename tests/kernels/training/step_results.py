"""One training step of a module, and how far two of them are apart."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

BF16 = torch.bfloat16


def one_step(module: nn.Module, x: Tensor, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Return outputs, gradients and buffers after one step, under autocast where a type is given."""
    module.zero_grad()
    with torch.autocast("cpu", dtype or BF16, enabled=dtype is not None):
        found = module(x)
    outputs = [found] if isinstance(found, Tensor) else [value for value in found if isinstance(value, Tensor)]
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(y.shape, generator=generator, dtype=torch.float64) for y in outputs]
    sum((y.double() * w).sum() for y, w in zip(outputs, weights, strict=True)).backward()
    named = {f"output {number}": y.detach() for number, y in enumerate(outputs)}
    named |= {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    return named | {name: buffer.clone() for name, buffer in module.named_buffers()}


def errors_of(found: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    assert found.keys() == exact.keys()
    scale = max(float(value.double().norm()) for value in exact.values())
    return {
        name: float((found[name].double() - value).norm() / value.double().norm())
        for name, value in exact.items()
        if float(value.double().norm()) > 1e-6 * scale  # a bias before a normalisation has no gradient but rounding
    }


def exact_step(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    return one_step(copy.deepcopy(module).double(), x.double())


def byte_images(size: int = 64, batch: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, generator=generator)
    return images.contiguous(memory_format=torch.channels_last)
