"""The compiled kernels as functions that autograd knows, and the cases in which they may stand in for plain layers.

They compute in float32 and keep float32 or bfloat16 tensors in channels_last memory. Nothing is kept for the backward
pass but what the next layer keeps anyway and the input; the rest is computed again.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import has_torch_function_unary

from yolox.models.fused.library import kernels

__all__ = [
    "CHANNEL_BLOCK",
    "TYPES",
    "batchnorm_silu",
    "batchnorm_silu_pair",
    "depthwise_conv",
    "fits",
    "fits_batchnorm_silu",
    "watched",
]

TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
CHANNEL_BLOCK = 16
"""`depthwise_conv` wants a multiple of so many channels."""


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


def batchnorm_silu_pair(x: Tensor, left: nn.BatchNorm2d, right: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return ``silu(left(a))`` and ``silu(right(b))`` of ``x = cat((a, b), dim=1)``, each in memory of its own.

    `fits_batchnorm_silu` holds for both; they have the same momentum and epsilon, a multiple of 16 channels each, and
    normalise over the samples of this process alone.
    """
    weight, bias = torch.cat((left.weight, right.weight)), torch.cat((left.bias, right.bias))
    a, b = _BatchNormSilu.apply(x, weight, bias, (left, right))  # type: ignore[no-untyped-call]
    return a, b


def depthwise_conv(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Return the 3x3 convolution of each channel with padding 1.

    Args:
        x: ``[B, C, H, W]``, C a multiple of 16.
        weight: ``[C, 1, 3, 3]``, rounded to the precision of ``x``.
        stride: 1 or 2.
    """
    y: Tensor = _Depthwise.apply(x, weight, stride)  # type: ignore[no-untyped-call]
    return y


_POINTER, _LONG, _DOUBLE = ctypes.c_void_p, ctypes.c_long, ctypes.c_double


class _Norm(ctypes.Structure):
    _fields_ = tuple((name, _POINTER) for name in ("weight", "bias", "mean", "rstd"))


class _Running(ctypes.Structure):
    _fields_ = (("mean", _POINTER), ("var", _POINTER), ("momentum", _DOUBLE))


class _Places(ctypes.Structure):
    _fields_ = (
        *(("first", _POINTER), ("first_stride", _LONG), ("second", _POINTER), ("second_stride", _LONG)),
        ("split", _LONG),
    )


class _Gradient(ctypes.Structure):
    _fields_ = (("dy", _Places), ("x", _POINTER), ("pixels", _LONG), ("channels", _LONG))


class _Images(ctypes.Structure):
    _fields_ = tuple((name, _LONG) for name in ("count", "channels", "height", "width", "stride"))


_PARAMETERS = {
    "batchnorm_silu_statistics": (_POINTER, _LONG, _LONG, _POINTER),
    "batchnorm_silu_forward": (_POINTER, _Places, _LONG, _LONG, _Norm, _POINTER, _DOUBLE, _DOUBLE, _Running),
    "batchnorm_silu_gradient_sums": (_Gradient, _POINTER, _Norm, _POINTER, _POINTER, _POINTER),
    "batchnorm_silu_backward": (_Gradient, _POINTER, _Norm, _POINTER, _POINTER, _POINTER, _DOUBLE),
    "depthwise_forward": (_POINTER, _POINTER, _Images, _POINTER),
    "depthwise_backward": (_POINTER, _POINTER, _POINTER, _Images, _POINTER, _POINTER),
}


@lru_cache
def _kernel(name: str, dtype: torch.dtype) -> Callable[..., None]:
    library = kernels()
    assert library is not None
    function: Any = getattr(library, f"{name}_{TYPES[dtype]}")
    function.argtypes, function.restype = _PARAMETERS[name], None
    return cast("Callable[..., None]", function)


def _call(name: str, dtype: torch.dtype, *arguments: Any) -> None:
    """Call the kernel of that name and type; tensors go by address."""
    _kernel(name, dtype)(*[value.data_ptr() if isinstance(value, Tensor) else value for value in arguments])


def _pixels(x: Tensor) -> int:
    return x.shape[0] * x.shape[2] * x.shape[3]


def _places(*tensors: tuple[Tensor, int]) -> _Places:
    """Return where the channels lie of one tensor or of two, each with the distance of its pixels."""
    (first, first_stride), (second, second_stride) = tensors[0], tensors[-1]
    return _Places(first.data_ptr(), first_stride, second.data_ptr(), second_stride, first.shape[1])


def _strided(gradient: Tensor) -> tuple[Tensor, int]:
    """Return a gradient and the distance of its pixels: some channels of a concatenation stay where they are."""
    _, channels, height, width = gradient.shape
    stride = gradient.stride(3)
    regular = gradient.stride() == (height * width * stride, 1, width * stride, stride)
    if regular and stride >= channels and channels % CHANNEL_BLOCK == 0:
        return gradient, stride
    return gradient.contiguous(memory_format=torch.channels_last), channels


class _BatchNormSilu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norms: tuple[nn.BatchNorm2d, ...]
    ) -> tuple[Tensor, ...]:
        pixels, channels = _pixels(x), x.shape[1]
        ctx.share, ctx.count, sums = getattr(norms[0], "sum_over_ranks", None), float(pixels), None
        if ctx.share is not None:
            sums = torch.empty(2 * channels + 1, dtype=torch.float64)
            _call("batchnorm_silu_statistics", x.dtype, x, pixels, channels, sums)
            sums[-1] = pixels
            ctx.share(sums)
            ctx.count = float(sums[-1])
        statistics, running = torch.empty(2, channels, dtype=torch.float32), _running(norms)
        y = tuple(_empty(x, norm.num_features) for norm in norms)
        moving = _Running(*(value.data_ptr() for value in running), norms[0].momentum or 0.0)
        places = _places(*((part, part.shape[1]) for part in y))
        arguments = (_norm(weight, bias, statistics), sums, ctx.count, norms[0].eps, moving)
        _call("batchnorm_silu_forward", x.dtype, x, places, pixels, channels, *arguments)
        _set_running_(norms, running)
        ctx.save_for_backward(x, weight, bias, statistics)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, bias, statistics = ctx.saved_tensors
        dy, dx = [_strided(grad.to(x.dtype)) for grad in grads], torch.empty_like(x)
        dweight, dbias, sums = torch.empty_like(weight), torch.empty_like(bias), None
        norm = _norm(weight, bias, statistics)
        gradient = _Gradient(_places(*dy), x.data_ptr(), _pixels(x), x.shape[1])
        if ctx.share is not None:  # the parameters' gradients are this rank's; the trainer adds those up
            sums = torch.empty(2, x.shape[1], dtype=torch.float64)
            _call("batchnorm_silu_gradient_sums", x.dtype, gradient, dx, norm, sums, dweight, dbias)
            ctx.share(sums)
        _call("batchnorm_silu_backward", x.dtype, gradient, dx, norm, sums, dweight, dbias, ctx.count)
        return dx, dweight, dbias, None


def _empty(like: Tensor, channels: int) -> Tensor:
    count, _, height, width = like.shape
    return torch.empty(count, channels, height, width, dtype=like.dtype, memory_format=torch.channels_last)


def _running(norms: tuple[nn.BatchNorm2d, ...]) -> list[Tensor]:
    """Return running mean and variance of all channels: the layer's own where there is one layer, else copies."""
    names = ("running_mean", "running_var")
    values: list[list[Tensor]] = [[getattr(norm, name) for norm in norms] for name in names]
    return [value[0] if len(value) == 1 else torch.cat(value) for value in values]


def _set_running_(norms: tuple[nn.BatchNorm2d, ...], values: list[Tensor]) -> None:
    """Give the layers their running statistics and count the batch."""
    start = 0
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        if len(norms) > 1:
            norm.running_mean.copy_(values[0][start : start + norm.num_features])
            norm.running_var.copy_(values[1][start : start + norm.num_features])
        start += norm.num_features


def _norm(weight: Tensor, bias: Tensor, statistics: Tensor) -> _Norm:
    mean = statistics.data_ptr()
    return _Norm(weight.data_ptr(), bias.data_ptr(), mean, mean + statistics.stride(0) * statistics.itemsize)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        count, channels, height, width = x.shape
        shape = (count, channels, (height - 1) // stride + 1, (width - 1) // stride + 1)
        y = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
        rounded = weight.to(x.dtype).float().contiguous()
        _call("depthwise_forward", x.dtype, x, y, _Images(count, channels, height, width, stride), rounded)
        ctx.save_for_backward(x, rounded)
        ctx.stride = stride
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, None]:
        x, weight = ctx.saved_tensors
        dweight = torch.empty_like(weight)
        dy = grads[0].to(x.dtype).contiguous(memory_format=torch.channels_last)
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        count, channels, height, width = x.shape
        images = _Images(count, channels, height, width, ctx.stride)
        _call("depthwise_backward", x.dtype, dy, x, dx, images, weight, dweight)
        return dx, dweight, None
