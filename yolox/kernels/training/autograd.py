"""The kernels as functions that autograd knows and that take and return plain tensors.

Nothing is kept for the backward pass but what the next layer keeps anyway and the input; the rest is computed again.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolox.kernels.training import ops
from yolox.kernels.training.norms import BatchNorm, NormAct
from yolox.kernels.training.sync import SharedNormalisation


def batchnorm_act(x: Tensor, norm: NormAct) -> Tensor:
    """Return ``x`` ``[B, C, H, W]`` normalised over the batch and activated, and move the running statistics.

    Args:
        x: float32 or bfloat16 in channels_last memory, more than one value a channel.
        norm: With parameters in float32.
    """
    y: Tensor = _BatchNormAct.apply(x, norm.layer.weight, norm.layer.bias, norm)  # type: ignore[no-untyped-call]
    return y


def depthwise_conv(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Return the 3x3 convolution of each channel with padding 1.

    Args:
        x: ``[B, C, H, W]`` in channels_last memory, C a multiple of `ops.CHANNEL_BLOCK`.
        weight: ``[C, 1, 3, 3]``, rounded to the precision of ``x``.
        stride: 1 or 2.
    """
    y: Tensor = _Depthwise.apply(x, weight, stride)  # type: ignore[no-untyped-call]
    return y


def strided_depthwise_conv(x: Tensor, weight: Tensor, padding: tuple[int, ...]) -> Tensor:
    """Return the convolution of each channel at stride 2.

    oneDNN's bf16 gradients of it are 2 to 12 times slower than those of the same convolution at stride 1 over a
    gradient with zeros in between, which are equal.

    Args:
        x: ``[B, C, H, W]``, bfloat16.
        weight: ``[C, 1, kernel, kernel]``, rounded to the precision of ``x``.
        padding: Rows and columns of zeros at each side.
    """
    with torch.autocast("cpu", enabled=False):
        y: Tensor = _StridedDepthwise.apply(x, weight.to(x.dtype), padding)  # type: ignore[no-untyped-call]
    return y


def max_pool(x: Tensor, side: int) -> Tensor:
    """Return the maxima over windows around each pixel.

    Args:
        x: ``[B, C, H, W]`` in channels_last memory, C a multiple of `ops.CHANNEL_BLOCK`.
        side: Of the windows, odd and at most `ops.LARGEST_WINDOW`.
    """
    y: Tensor = _MaxPool.apply(x, side)  # type: ignore[no-untyped-call]
    return y


def dense_gradient(x: Tensor) -> Tensor:
    """Return ``x``; its gradient comes back without gaps in memory.

    From a concatenation PyTorch hands back parts of one tensor with gaps from pixel to pixel. To add those up, or to
    take them through an upsampling, takes three to eight times as long as a copy without gaps. `batchnorm_act` reads
    them as they are.
    """
    if not x.requires_grad:
        return x
    y: Tensor = _DenseGradient.apply(x)  # type: ignore[no-untyped-call]
    return y


def over_ranks(sums: Tensor, norm: nn.Module) -> Tensor:
    """Return sums over the processes that normalise together; the same tensor where there are none."""
    if not isinstance(norm, SharedNormalisation):
        return sums
    sums = sums.clone()  # autograd may have handed it to others, too
    norm.sum_over_ranks(sums)
    return sums


def normalised(x: Tensor, sums: Tensor, norm: NormAct) -> tuple[BatchNorm, float]:
    """Return the normalisation of ``x``, whose `ops.statistics` those are, and the number of pixels it is over.

    Moves the running statistics.
    """
    count = float(x.shape[0] * x.shape[2] * x.shape[3])
    if isinstance(norm.layer, SharedNormalisation):
        shared = torch.cat((sums.flatten(), torch.tensor([count], dtype=sums.dtype)))
        norm.layer.sum_over_ranks(shared)
        sums, count = shared[:-1], float(shared[-1])
    elif count <= 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}")
    return ops.normalise(sums, count, norm.layer, norm.activation), count


class _BatchNormAct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: NormAct) -> Tensor:
        batch, ctx.count = normalised(x, ops.statistics(x), norm)
        ctx.save_for_backward(x, batch.weight, batch.bias, batch.moments)
        ctx.norm = norm
        return ops.activate(x, batch)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, *values = ctx.saved_tensors
        weight, bias, moments = values
        norm = BatchNorm(weight, bias, moments, ctx.norm.activation)
        dz, sums = ops.gradient_sums(grads[0], x, norm)
        own = ops.parameter_gradients(sums, norm)  # of this rank; the trainer adds those up
        sums = over_ranks(sums, ctx.norm.layer)
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


class _StridedDepthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, padding: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return F.conv2d(x, weight, stride=2, padding=padding, groups=x.shape[1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        spread = torch.zeros_like(x)
        spread[..., ::2, ::2] = grads[0]
        wanted = [*ctx.needs_input_grad[:2], False]
        grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
            spread, x, weight, None, [1, 1], ctx.padding, [1, 1], False, [0, 0], x.shape[1], wanted
        )
        return grad_x, grad_weight, None


class _DenseGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].contiguous(memory_format=torch.channels_last)


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, side: int) -> Tensor:
        y, places = ops.max_pool(x, side)
        ctx.save_for_backward(places)
        ctx.side = side
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        return ops.max_pool_backward(grads[0].contiguous(memory_format=torch.channels_last), places, ctx.side), None
