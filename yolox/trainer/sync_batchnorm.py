"""Batch normalisation over the batch of all ranks, on CPUs, where PyTorch's own ``SyncBatchNorm`` refuses to run."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning.plugins.layer_sync import LayerSync
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from yolox.kernels.training.sync import SharedNormalisation
from yolox.trainer.shared_memory_allreduce import sum_over_ranks


class _Normalise(torch.autograd.Function):
    """Batch normalisation with mean and variance over the samples of all ranks; shapes [B, C, ...] and [C].

    PyTorch's kernels do the passes over the samples, in the memory layout and precision of the input: its normalisation
    "in evaluation" is any factor and offset for each channel, and its gradient is the two sums that the ranks share.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, statistics: Tensor, count: Tensor, layer: CpuSyncBatchNorm
    ) -> Tensor:
        ctx.save_for_backward(x, weight, statistics, count)
        ctx.layer = layer
        return _scaled(x, weight, bias, statistics, layer.eps)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, statistics, count = ctx.saved_tensors
        grad, eps = grads[0], ctx.layer.eps
        _, products, plain = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, *statistics, None, None, False, eps, [False, True, True]
        )
        rstd = torch.rsqrt(statistics[1] + eps)
        sums = torch.stack([plain.double(), products.double() / rstd])
        ctx.layer.sum_over_ranks(sums)
        mean_grad, mean_product = (sums / count).to(rstd.dtype).unbind()
        # the gradient without the parts that a shift or a stretch of all samples would cancel
        scale = weight * rstd
        inner = _scaled(x, -scale * mean_product * rstd, -scale * mean_grad, statistics, eps)
        nothing, one = torch.zeros_like(scale), torch.ones_like(scale)
        inner += _scaled(grad, scale, nothing, torch.stack([nothing, one]), 0.0)
        return inner, products, plain, None, None, None


class CpuSyncBatchNorm(_BatchNorm, SharedNormalisation):
    """Batch normalisation whose statistics in training are those of all ranks together; same parameters and keys.

    Arguments are those of ``torch.nn.BatchNorm2d``; any number of spatial dimensions is accepted.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, got {input.dim()}")

    def sum_over_ranks(self, sums: Tensor) -> None:
        """Add up, in place, what the ranks hold."""
        if _several_ranks():
            sum_over_ranks(sums)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise over the batch of all ranks."""
        self._check_input_dim(input)
        if not (self.training and _several_ranks()):
            result: Tensor = super().forward(input)
            return result
        mean, variance, count = self._statistics(input.detach())
        self._update_running_(mean, variance, count)
        weight, bias = (self.weight, self.bias) if self.affine else (torch.ones_like(mean), torch.zeros_like(mean))
        normalised: Tensor = _Normalise.apply(input, weight, bias, torch.stack([mean, variance]), count, self)  # type: ignore[no-untyped-call]
        return normalised

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean [C], biased variance [C] and sample count [] over all ranks."""
        precise = torch.float64 if x.dtype == torch.float64 else torch.float32
        unused = torch.zeros(x.shape[1], dtype=precise)
        mean, variance = (value.double() for value in torch.batch_norm_update_stats(x, unused, unused, 0.0))
        mine = x.numel() / x.shape[1]
        sums = torch.cat([mean * mine, (variance + mean.square()) * mine, torch.tensor([mine], dtype=torch.float64)])
        self.sum_over_ranks(sums)
        count = sums[-1]
        mean, squares = (sums[:-1] / count).view(2, -1).unbind()
        return mean.to(precise), (squares - mean.square()).clamp(min=0).to(precise), count

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


def _several_ranks() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _scaled(x: Tensor, weight: Tensor, bias: Tensor, statistics: Tensor, eps: float) -> Tensor:
    """Return ``(x - mean) / sqrt(variance + eps) * weight + bias``, channel by channel."""
    mean, variance = statistics
    result: Tensor = torch.native_batch_norm(x, weight, bias, mean, variance, False, 0.0, eps)[0]
    return result
