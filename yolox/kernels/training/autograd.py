"""The compiled kernels as functions that autograd knows, and the cases in which they may stand in for plain layers.

Nothing is kept for the backward pass but what the next layer keeps anyway and the input; the rest is computed again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.overrides import has_torch_function_unary

from yolox.kernels.library import kernels
from yolox.kernels.training import ops
from yolox.kernels.training.bindings import TYPES
from yolox.kernels.training.ops import BatchNorm

__all__ = [
    "batchnorm_silu",
    "depthwise_conv",
    "fits",
    "fits_batchnorm_silu",
    "knows",
    "normalised",
    "parameter_gradients",
    "recording",
    "share_",
    "watched",
]


def recording() -> bool:
    """Whether a graph is being recorded, which shall consist of PyTorch's operators."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]


def fits(x: Tensor) -> bool:
    """Whether ``x`` ``[B, C, H, W]`` is being trained on in a way the kernels know.

    Not while a graph is being recorded, nor where a mode or subclass wants to see PyTorch's operators.
    """
    if recording() or not torch.is_grad_enabled() or has_torch_function_unary(x):
        return False
    plain = x.device.type == "cpu" and x.dtype in TYPES and x.numel() > 0
    return plain and x.is_contiguous(memory_format=torch.channels_last) and kernels() is not None


def watched(module: nn.Module) -> bool:
    """Whether nothing may stand in for a module: a hook wants to see it being called, or it was given a `forward`."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module) or bool(_has_any_global_hook())  # type: ignore[no-untyped-call]


def fits_batchnorm_silu(x: Tensor, norm: nn.Module, act: nn.Module) -> bool:
    """Whether `batchnorm_silu` does what ``act(norm(x))`` does.

    A normalisation over several processes takes part by a method ``sum_over_ranks(sums)``, which adds up float64 sums
    in place: ``[2 * C + 1]`` forwards (of x, of its squares, and the number of pixels), ``[2 * C]`` backwards (of the
    gradient, and of the gradient times x minus the mean).
    """
    return knows(norm, act) and x.shape[0] * x.shape[2] * x.shape[3] > 1 and fits(x)


def knows(norm: nn.Module, act: nn.Module) -> bool:
    """Whether the kernels know this normalisation over a batch and this activation."""
    known = type(norm) is nn.BatchNorm2d or hasattr(norm, "sum_over_ranks")
    if not known or type(act) is not nn.SiLU or not norm.training:
        return False
    usual = bool(norm.affine and norm.track_running_stats) and norm.momentum is not None
    return usual and norm.weight.dtype == torch.float32 and not (watched(norm) or watched(act))


def batchnorm_silu(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """Return ``silu(norm(x))`` in training, and move the running statistics."""
    y: Tensor = _BatchNormSilu.apply(x, norm.weight, norm.bias, norm)  # type: ignore[no-untyped-call]
    return y


def depthwise_conv(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Return the 3x3 convolution of each channel with padding 1.

    Args:
        x: ``[B, C, H, W]``, C a multiple of 16.
        weight: ``[C, 1, 3, 3]``, rounded to the precision of ``x``.
        stride: 1 or 2.
    """
    y: Tensor = _Depthwise.apply(x, weight, stride)  # type: ignore[no-untyped-call]
    return y


def share_(sums: Tensor, norm: nn.BatchNorm2d) -> None:
    """Add up sums over the processes that normalise together, if there are any."""
    share = getattr(norm, "sum_over_ranks", None)
    if share is not None:
        share(sums)


def normalised(x: Tensor, sums: Tensor, norm: nn.BatchNorm2d) -> tuple[BatchNorm, float]:
    """Return the normalisation of ``x``, whose `ops.statistics` those are, and the number of pixels it is over.

    Moves the running statistics.
    """
    count = float(x.shape[0] * x.shape[2] * x.shape[3])
    if hasattr(norm, "sum_over_ranks"):
        shared = torch.cat((sums.flatten(), torch.tensor([count], dtype=sums.dtype)))
        share_(shared, norm)
        sums, count = shared[:-1], float(shared[-1])
    return ops.normalise(sums, count, norm), count


def parameter_gradients(sums: Tensor, norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """Return the gradients of weight and bias, from `ops.gradient_sums` of this process alone."""
    return (sums[1] * norm.moments[1]).to(norm.weight.dtype), sums[0].to(norm.bias.dtype)


class _BatchNormSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d) -> Tensor:
        batch, ctx.count = normalised(x, ops.statistics(x), norm)
        ctx.save_for_backward(x, *batch)
        ctx.norm = norm
        return ops.activate(x, batch)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, *values = ctx.saved_tensors
        norm = BatchNorm(*values)
        dz, sums = ops.gradient_sums(grads[0], x, norm)
        own = parameter_gradients(sums, norm)  # of this rank; the trainer adds those up
        share_(sums, ctx.norm)
        return ops.normalise_backward_(dz, sums, ctx.count, x, norm), *own, None


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        rounded = weight.to(x.dtype).float().contiguous()
        ctx.save_for_backward(x, rounded)
        ctx.stride = stride
        return ops.depthwise(x, rounded, stride)[0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, None]:
        x, weight = ctx.saved_tensors
        found = ops.depthwise_backward(grads[0], x, weight, ctx.stride, wants_input=ctx.needs_input_grad[0])
        return (found.inputs or (None,))[0], found.weight, None
