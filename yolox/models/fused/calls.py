"""The compiled kernels as functions of tensors, without autograd.

Tensors lie in channels_last memory, as float32 or bfloat16; the kernels compute in float32. ``sums`` are in float64,
one row of ``C`` each.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from yolox.models.fused.library import kernels

__all__ = [
    "CHANNEL_BLOCK",
    "MOST_CHANNELS",
    "TYPES",
    "BatchNorm",
    "PointwiseGradients",
    "activate",
    "depthwise",
    "depthwise_backward",
    "gradient_sums",
    "has_pointwise",
    "normalise",
    "normalise_backward_",
    "pointwise",
    "pointwise_backward",
    "statistics",
]

TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
CHANNEL_BLOCK = 16
"""Kernels that go pixel by pixel want a multiple of so many channels."""
MOST_CHANNELS = 1024
"""Of input and output of `pointwise` together; wider matrices outgrow its blocks, and oneDNN is as fast or faster."""

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


class _Shape(ctypes.Structure):
    _fields_ = tuple((name, _LONG) for name in ("pixels", "inputs", "outputs"))


_PARAMETERS = {
    "batchnorm_silu_statistics": (_POINTER, _LONG, _LONG, _POINTER),
    "batchnorm_silu_moments": (_POINTER, _DOUBLE, _DOUBLE, _LONG, _Norm, _Running),
    "batchnorm_silu_forward": (_POINTER, _Places, _LONG, _LONG, _Norm),
    "batchnorm_silu_gradient_sums": (_Gradient, _POINTER, _Norm, _POINTER, _POINTER, _POINTER),
    "batchnorm_silu_backward": (_POINTER, _POINTER, _LONG, _LONG, _Norm, _POINTER, _DOUBLE),
    "depthwise_forward": (_POINTER, _POINTER, _Images, _POINTER),
    "depthwise_backward": (_POINTER, _POINTER, _POINTER, _Images, _POINTER, _POINTER),
    "pointwise_forward": (_Places, _Norm, _Shape, _POINTER, _POINTER, _POINTER),
    "pointwise_backward": (
        *(_POINTER, _POINTER, _Norm, _POINTER, _DOUBLE),
        *(_Places, _Norm, _Places, _Shape, _POINTER, _POINTER, _POINTER),
    ),
}


@lru_cache
def _kernel(name: str, dtype: torch.dtype | None) -> Callable[..., None]:
    library = kernels()
    assert library is not None
    function: Any = getattr(library, name if dtype is None else f"{name}_{TYPES[dtype]}")
    function.argtypes, function.restype = _PARAMETERS[name], None
    return cast("Callable[..., None]", function)


def _call(name: str, dtype: torch.dtype | None, *arguments: Any) -> None:
    """Call the kernel of that name and type; tensors go by address."""
    _kernel(name, dtype)(*[value.data_ptr() if isinstance(value, Tensor) else value for value in arguments])


def has_pointwise() -> bool:
    """Whether this processor multiplies matrices of bfloat16, which `pointwise` is for."""
    return hasattr(kernels(), "pointwise_forward_bfloat16")


class BatchNorm(NamedTuple):
    """A normalisation over a batch, or several side by side.

    Attributes:
        weight: ``[C]``.
        bias: ``[C]``.
        moments: ``[2, C]``: the batch's mean, and 1 / its deviation.
    """

    weight: Tensor
    bias: Tensor
    moments: Tensor

    def __call__(self) -> _Norm:
        """Return what the kernels take."""
        mean = self.moments.data_ptr()
        distance = self.moments.stride(0) * self.moments.itemsize
        return _Norm(self.weight.data_ptr(), self.bias.data_ptr(), mean, mean + distance)


def _pixels(x: Tensor) -> int:
    return x.shape[0] * x.shape[2] * x.shape[3]


def _empty(like: Tensor, channels: int) -> Tensor:
    count, _, height, width = like.shape
    return torch.empty(count, channels, height, width, dtype=like.dtype, memory_format=torch.channels_last)


def _places(*tensors: tuple[Tensor, int]) -> _Places:
    """Return where the channels lie of one tensor or of two, each with the distance of its pixels."""
    (first, first_stride), (second, second_stride) = tensors[0], tensors[-1]
    return _Places(first.data_ptr(), first_stride, second.data_ptr(), second_stride, first.shape[1])


def _dense(*parts: Tensor) -> _Places:
    return _places(*((part, part.shape[1]) for part in parts)) if parts else _Places()


def _strided(gradient: Tensor) -> tuple[Tensor, int]:
    """Return a gradient and the distance of its pixels: some channels of a concatenation stay where they are."""
    _, channels, height, width = gradient.shape
    stride = gradient.stride(3)
    regular = gradient.stride() == (height * width * stride, 1, width * stride, stride)
    if regular and stride >= channels and channels % CHANNEL_BLOCK == 0:
        return gradient, stride
    return gradient.contiguous(memory_format=torch.channels_last), channels


def statistics(x: Tensor) -> Tensor:
    """Return the sums ``[2, C]`` of x and of its squares."""
    sums = torch.empty(2, x.shape[1], dtype=torch.float64)
    _call("batchnorm_silu_statistics", x.dtype, x, _pixels(x), x.shape[1], sums)
    return sums


def normalise(sums: Tensor, count: float, norms: Sequence[nn.BatchNorm2d], weight: Tensor, bias: Tensor) -> BatchNorm:
    """Return the normalisation of a batch of ``count`` pixels with those statistics, and move the running ones."""
    channels = weight.numel()
    norm = BatchNorm(weight, bias, torch.empty(2, channels, dtype=torch.float32))
    running = _running(norms)
    moving = _Running(*(value.data_ptr() for value in running), norms[0].momentum or 0.0)
    _call("batchnorm_silu_moments", None, sums, count, norms[0].eps, channels, norm(), moving)
    _set_running_(norms, running)
    return norm


def _running(norms: Sequence[nn.BatchNorm2d]) -> list[Tensor]:
    """Return running mean and variance of all channels: the layer's own where there is one layer, else copies."""
    names = ("running_mean", "running_var")
    values: list[list[Tensor]] = [[getattr(norm, name) for norm in norms] for name in names]
    return [value[0] if len(value) == 1 else torch.cat(value) for value in values]


def _set_running_(norms: Sequence[nn.BatchNorm2d], values: list[Tensor]) -> None:
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


def activate(x: Tensor, norm: BatchNorm, channels: Sequence[int]) -> tuple[Tensor, ...]:
    """Return ``silu(norm(x))``, so many channels in a tensor of their own."""
    y = tuple(_empty(x, number) for number in channels)
    places = _places(*((part, part.shape[1]) for part in y))
    _call("batchnorm_silu_forward", x.dtype, x, places, _pixels(x), x.shape[1], norm())
    return y


def gradient_sums(grads: Sequence[Tensor], x: Tensor, norm: BatchNorm) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what the gradients of `activate` are before the activation.

    Returns:
        The gradient dz, like ``x``; its sums ``[2, C]``, its own and of its product with x minus the mean; and the
        gradients of weight and bias.
    """
    dy, dz = [_strided(grad.to(x.dtype)) for grad in grads], torch.empty_like(x)
    sums = torch.empty(2, x.shape[1], dtype=torch.float64)
    dweight, dbias = torch.empty_like(norm.weight), torch.empty_like(norm.bias)
    gradient = _Gradient(_places(*dy), x.data_ptr(), _pixels(x), x.shape[1])
    _call("batchnorm_silu_gradient_sums", x.dtype, gradient, dz, norm(), sums, dweight, dbias)
    return dz, sums, dweight, dbias


def normalise_backward_(dz: Tensor, sums: Tensor, count: float, x: Tensor, norm: BatchNorm) -> Tensor:
    """Turn the gradient before the activation into that of ``x``, in place."""
    _call("batchnorm_silu_backward", x.dtype, x, dz, _pixels(x), x.shape[1], norm(), sums, count)
    return dz


def _images(x: Tensor, stride: int) -> _Images:
    count, channels, height, width = x.shape
    return _Images(count, channels, height, width, stride)


def depthwise(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Return the 3x3 convolution of each channel; ``weight`` is float32."""
    count, channels, height, width = x.shape
    shape = (count, channels, (height - 1) // stride + 1, (width - 1) // stride + 1)
    y = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
    _call("depthwise_forward", x.dtype, x, y, _images(x, stride), weight)
    return y


def depthwise_backward(
    dy: Tensor, x: Tensor, weight: Tensor, stride: int, *, wants_input: bool
) -> tuple[Tensor | None, Tensor]:
    """Return the gradients of `depthwise` with respect to ``x``, if wanted, and ``weight``."""
    dweight = torch.empty_like(weight)
    dy = dy.to(x.dtype).contiguous(memory_format=torch.channels_last)
    dx = torch.empty_like(x) if wants_input else None
    _call("depthwise_backward", x.dtype, dy, x, dx, _images(x, stride), weight, dweight)
    return dx, dweight


def _shape(x: Tensor, weight: Tensor) -> _Shape:
    return _Shape(_pixels(x), weight.shape[1], weight.shape[0])


def pointwise(parts: Sequence[Tensor], weight: Tensor, pending: BatchNorm | None = None) -> tuple[Tensor, Tensor]:
    """Return the 1x1 convolution of ``x``, or of ``silu(pending(x))``, and its sums as of `statistics`.

    Args:
        parts: One or two tensors in bfloat16 whose channels are those of ``x``, side by side.
        weight: Float32 ``[out, in, 1, 1]`` without gaps, rounded on the way.
        pending: What ``x`` still has to go through.

    All numbers of channels are multiples of `CHANNEL_BLOCK`.
    """
    x, num_out = parts[0], weight.shape[0]
    y, sums = _empty(x, num_out), torch.empty(2, num_out, dtype=torch.float64)
    before = pending() if pending else _Norm()
    _call("pointwise_forward", x.dtype, _dense(*parts), before, _shape(x, weight), weight, y, sums)
    return y, sums


class PointwiseGradients(NamedTuple):
    """Of `pointwise`.

    Attributes:
        parts: The gradients of the parts, or those of ``pending(x)`` before its activation; none if not wanted.
        weight: Like the weight.
        sums: As of `gradient_sums`, where something was pending.
    """

    parts: tuple[Tensor, ...]
    weight: Tensor
    sums: Tensor


def pointwise_backward(
    dz: tuple[Tensor, Tensor, float],
    y: tuple[Tensor, BatchNorm],
    x: tuple[Sequence[Tensor], BatchNorm | None],
    weight: Tensor,
    *,
    wants_input: bool,
) -> PointwiseGradients:
    """Return the gradients of `pointwise` followed by a normalisation.

    Args:
        dz: The gradient after that normalisation and before its activation, its sums as of `gradient_sums`, and the
            number of pixels in those.
        y: What `pointwise` returned, and that normalisation.
        x: The parts that `pointwise` was given, and what was pending.
        weight: What `pointwise` was given.
        wants_input: Whether to compute the gradients of the parts.
    """
    (gradient, norm_sums, count), (value, norm), (parts, pending) = dz, y, x
    result = PointwiseGradients(
        tuple(torch.empty_like(part) for part in parts) if wants_input else (),
        torch.empty_like(weight),
        torch.empty(2, weight.shape[1], dtype=torch.float64),
    )
    before = pending() if pending else _Norm()
    _call(
        *("pointwise_backward", value.dtype, gradient, value, norm(), norm_sums, count, _dense(*parts), before),
        *(_dense(*result.parts), _shape(value, weight), weight, result.weight, result.sums),
    )
    return result
