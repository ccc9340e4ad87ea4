"""The compiled kernels as functions that autograd knows, and the cases in which they may stand in for plain layers.

Nothing is kept for the backward pass but what the next layer keeps anyway and the input; the rest is computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import has_torch_function_unary

from yolox.models.fused import calls
from yolox.models.fused.calls import TYPES, BatchNorm
from yolox.models.fused.library import kernels

__all__ = [
    "batchnorm_silu",
    "depthwise_conv",
    "fits",
    "fits_batchnorm_silu",
    "pointwise_block",
    "separable_block",
    "watched",
]


def fits(x: Tensor) -> bool:
    """Whether ``x`` ``[B, C, H, W]`` is being trained on in a way the kernels know.

    Not while a graph is being recorded, nor where a mode or subclass wants to see PyTorch's operators.
    """
    recording = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if recording or not torch.is_grad_enabled() or has_torch_function_unary(x):
        return False
    plain = x.device.type == "cpu" and x.dtype in TYPES and x.numel() > 0
    return plain and x.is_contiguous(memory_format=torch.channels_last) and kernels() is not None


def watched(module: nn.Module) -> bool:
    """Whether a hook wants to see the module being called, so that nothing may stand in for it."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def fits_batchnorm_silu(x: Tensor, norm: nn.Module, act: nn.Module) -> bool:
    """Whether `batchnorm_silu` does what ``act(norm(x))`` does.

    A normalisation over several processes takes part by a method ``sum_over_ranks(sums)``, which adds up float64 sums
    in place: ``[2 * C + 1]`` forwards (of x, of its squares, and the number of pixels), ``[2 * C]`` backwards (of the
    gradient, and of the gradient times x minus the mean).
    """
    known = type(norm) is nn.BatchNorm2d or hasattr(norm, "sum_over_ranks")
    if not known or type(act) is not nn.SiLU or not norm.training:
        return False
    usual = bool(norm.affine and norm.track_running_stats) and norm.momentum is not None
    usual = usual and norm.weight.dtype == torch.float32
    return usual and not (watched(norm) or watched(act)) and x.shape[0] * x.shape[2] * x.shape[3] > 1 and fits(x)


def batchnorm_silu(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """Return ``silu(norm(x))`` in training, and move the running statistics."""
    y: Tensor
    (y,) = _BatchNormSilu.apply(x, norm.weight, norm.bias, (norm,))  # type: ignore[no-untyped-call]
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


def pointwise_block(parts: Sequence[Tensor], weight: Tensor, norms: Sequence[nn.BatchNorm2d]) -> tuple[Tensor, ...]:
    """Return ``silu(norm(conv(cat(parts))))`` of a 1x1 convolution, for each normalisation its own channels.

    Args:
        parts: One or two tensors ``[B, C, H, W]`` in bfloat16, which need not lie side by side.
        weight: ``[out, in, 1, 1]``, float32, rounded on the way.
        norms: One, or two with the same momentum and epsilon over the samples of this process.

    All numbers of channels are multiples of 16.
    """
    gamma, beta = (_side_by_side([getattr(norm, name) for norm in norms]) for name in ("weight", "bias"))
    y: tuple[Tensor, ...] = _PointwiseBlock.apply(weight, gamma, beta, norms, *parts)  # type: ignore[no-untyped-call]
    return y


def _side_by_side(parameters: list[Tensor]) -> Tensor:
    return parameters[0] if len(parameters) == 1 else torch.cat(parameters)


def separable_block(
    x: Tensor, depthwise: Tensor, stride: int, inner: nn.BatchNorm2d, pointwise: Tensor, outer: nn.BatchNorm2d
) -> Tensor:
    """Return ``silu(outer(1x1 convolution of silu(inner(3x3 convolution of each channel of x))))``.

    What the inner normalisation and its activation give is never in memory as a whole.

    Args:
        x: ``[B, in, H, W]``, bfloat16.
        depthwise: ``[in, 1, 3, 3]``.
        stride: 1 or 2.
        inner: Over ``in`` channels.
        pointwise: ``[out, in, 1, 1]``, float32, rounded on the way. Both numbers are multiples of 16.
        outer: Over ``out`` channels.
    """
    parameters = (depthwise, inner.weight, inner.bias, pointwise, outer.weight, outer.bias)
    y: Tensor = _SeparableBlock.apply(x, *parameters, stride, inner, outer)  # type: ignore[no-untyped-call]
    return y


def _share_(sums: Tensor, norm: nn.BatchNorm2d) -> None:
    """Add up sums over the processes that normalise together, if there are any."""
    share = getattr(norm, "sum_over_ranks", None)
    if share is not None:
        share(sums)


def _normalise(
    x: Tensor, sums: Tensor, norms: Sequence[nn.BatchNorm2d], weight: Tensor, bias: Tensor
) -> tuple[BatchNorm, float]:
    """Return the normalisation of x, whose sums those are, and the number of pixels it is over."""
    count = float(x.shape[0] * x.shape[2] * x.shape[3])
    if hasattr(norms[0], "sum_over_ranks"):
        shared = torch.cat((sums.flatten(), torch.tensor([count], dtype=sums.dtype)))
        _share_(shared, norms[0])
        sums, count = shared[:-1], float(shared[-1])
    return calls.normalise(sums, count, norms, weight, bias), count


class _BatchNormSilu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norms: Sequence[nn.BatchNorm2d]
    ) -> tuple[Tensor, ...]:
        norm, ctx.count = _normalise(x, calls.statistics(x), norms, weight, bias)
        ctx.save_for_backward(x, *norm)
        ctx.norms = norms
        return calls.activate(x, norm, [part.num_features for part in norms])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, *values = ctx.saved_tensors
        norm = BatchNorm(*values)
        dz, sums, dweight, dbias = calls.gradient_sums(grads, x, norm)
        _share_(sums, ctx.norms[0])  # the parameters' gradients are this rank's; the trainer adds those up
        return calls.normalise_backward_(dz, sums, ctx.count, x, norm), dweight, dbias, None


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        rounded = weight.to(x.dtype).float().contiguous()
        ctx.save_for_backward(x, rounded)
        ctx.stride = stride
        return calls.depthwise(x, rounded, stride)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, None]:
        x, weight = ctx.saved_tensors
        wants_input = ctx.needs_input_grad[0]
        dx, dweight = calls.depthwise_backward(grads[0], x, weight, ctx.stride, wants_input=wants_input)
        return dx, dweight, None


class _PointwiseBlock(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, gamma: Tensor, beta: Tensor, norms: Sequence[nn.BatchNorm2d], *parts: Tensor
    ) -> tuple[Tensor, ...]:
        weight = weight.contiguous()
        value, sums = calls.pointwise(parts, weight)
        norm, ctx.count = _normalise(value, sums, norms, gamma, beta)
        ctx.save_for_backward(weight, value, *norm, *parts)
        ctx.norms = norms
        return calls.activate(value, norm, [part.num_features for part in norms])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight, value, gamma, beta, moments, *parts = ctx.saved_tensors
        norm = BatchNorm(gamma, beta, moments)
        dz, sums, dgamma, dbeta = calls.gradient_sums(grads, value, norm)
        _share_(sums, ctx.norms[0])
        own = calls.pointwise_backward(
            (dz, sums, ctx.count), (value, norm), (parts, None), weight, wants_input=any(ctx.needs_input_grad[4:])
        )
        return own.weight, dgamma, dbeta, None, *(own.parts or [None] * len(parts))


class _SeparableBlock(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, depthwise: Tensor, *rest: Any) -> Tensor:
        gamma, beta, pointwise, outer_gamma, outer_beta, ctx.stride, *ctx.norms = rest
        rounded, pointwise = depthwise.to(x.dtype).float().contiguous(), pointwise.contiguous()
        first = calls.depthwise(x, rounded, ctx.stride)
        inner, count = _normalise(first, calls.statistics(first), (ctx.norms[0],), gamma, beta)
        second, sums = calls.pointwise((first,), pointwise, inner)
        outer, outer_count = _normalise(second, sums, (ctx.norms[1],), outer_gamma, outer_beta)
        ctx.counts = (count, outer_count)
        ctx.save_for_backward(x, rounded, first, *inner, pointwise, second, *outer)
        (y,) = calls.activate(second, outer, [second.shape[1]])
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, depthwise, first, *inner_values, pointwise, second, w, b, m = ctx.saved_tensors
        inner, outer = BatchNorm(*inner_values), BatchNorm(w, b, m)
        dz, outer_sums, *outer_grads = calls.gradient_sums(grads, second, outer)
        _share_(outer_sums, ctx.norms[1])
        after = (dz, outer_sums, ctx.counts[1])
        inwards = calls.pointwise_backward(after, (second, outer), ((first,), inner), pointwise, wants_input=True)
        inner_grads = (inwards.sums[1] * inner.moments[1]).to(inner.weight.dtype), inwards.sums[0].to(inner.bias.dtype)
        _share_(inwards.sums, ctx.norms[0])
        dfirst = calls.normalise_backward_(inwards.parts[0], inwards.sums, ctx.counts[0], first, inner)
        wants_input = ctx.needs_input_grad[0]
        dx, ddepthwise = calls.depthwise_backward(dfirst, x, depthwise, ctx.stride, wants_input=wants_input)
        return dx, ddepthwise, *inner_grads, inwards.weight, *outer_grads, None, None, None
