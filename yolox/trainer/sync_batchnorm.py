"""Batch normalisation over the batch of all ranks, on CPUs, where PyTorch's own ``SyncBatchNorm`` refuses to run."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning.plugins.layer_sync import LayerSync
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["CpuSyncBatchNorm", "SyncBatchNormLayers"]


class _Normalise(torch.autograd.Function):
    """``(x - mean) / std`` with mean and variance over the samples of all ranks; shapes [B, C, ...] and [C]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mean: Tensor, inverse_std: Tensor, count: Tensor) -> Tensor:
        shape = _channel_shape(x)
        normalised = (x - mean.view(shape)) * inverse_std.view(shape)
        ctx.save_for_backward(normalised, inverse_std, count)
        return normalised

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        normalised, inverse_std, count = ctx.saved_tensors
        axes, shape = _other_axes(grad), _channel_shape(grad)
        sums = torch.stack([grad.sum(axes), (grad * normalised).sum(axes)])
        dist.all_reduce(sums)
        mean_grad, mean_product = (sums / count).unbind()
        inner = grad - mean_grad.view(shape) - normalised * mean_product.view(shape)
        return inner * inverse_std.view(shape), None, None, None


class CpuSyncBatchNorm(_BatchNorm):
    """Batch normalisation whose statistics in training are those of all ranks together; same parameters and keys.

    Arguments are those of ``torch.nn.BatchNorm2d``; any number of spatial dimensions is accepted.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, got {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise over the batch of all ranks."""
        self._check_input_dim(input)
        alone = not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1
        if alone or not self.training:
            result: Tensor = super().forward(input)
            return result
        x = input if input.dtype == torch.float64 else input.float()
        mean, variance, count = _statistics(x.detach())
        self._update_running_(mean, variance, count)
        normalised: Tensor = _Normalise.apply(x, mean, torch.rsqrt(variance + self.eps), count)  # type: ignore[no-untyped-call]
        if self.affine:
            shape = _channel_shape(x)
            normalised = normalised * self.weight.view(shape) + self.bias.view(shape)
        return normalised.to(input.dtype)

    @torch.no_grad()
    def _update_running_(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        momentum = self.momentum
        if momentum is None:  # a plain average over all batches
            momentum = 1.0 / float(self.num_batches_tracked) if self.num_batches_tracked is not None else 0.0
        unbiased = variance * (count / (count - 1).clamp(min=1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)


class SyncBatchNormLayers(LayerSync):
    """Replaces the batch normalisations of a module for the time of a fit, and puts plain ones back."""

    def __init__(self) -> None:
        self._originals: dict[str, type[nn.Module]] = {}

    def apply(self, model: nn.Module) -> nn.Module:
        """Synchronise every batch normalisation of ``model``."""
        for name, module in model.named_modules():
            if isinstance(module, _BatchNorm) and not isinstance(module, CpuSyncBatchNorm):
                self._originals[name] = type(module)
                module.__class__ = CpuSyncBatchNorm  # same parameters, buffers and hooks: nothing else has to change
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Undo `apply`."""
        for name, module in model.named_modules():
            if name in self._originals:
                module.__class__ = self._originals[name]
        self._originals.clear()
        return model


def _statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean [C], biased variance [C] and sample count [] over all ranks: one message, without cancellation."""
    axes = _other_axes(x)
    mean = x.mean(axes)
    squares = (x - mean.view(_channel_shape(x))).square().sum(axes)
    mine = torch.cat([mean, squares, torch.tensor([x.numel() / x.shape[1]], dtype=x.dtype, device=x.device)])
    ranks = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(ranks, mine)
    everyone = torch.stack(ranks)
    means, squares_of_ranks, counts = everyone[:, : len(mean)], everyone[:, len(mean) : -1], everyone[:, -1:]
    total = counts.sum()
    mean = (means * counts).sum(0) / total
    squares = squares_of_ranks.sum(0) + ((means - mean).square() * counts).sum(0)
    return mean, squares / total, total


def _other_axes(x: Tensor) -> tuple[int, ...]:
    return (0, *range(2, x.dim()))


def _channel_shape(x: Tensor) -> tuple[int, ...]:
    return (1, -1, *(1 for _ in range(x.dim() - 2)))
