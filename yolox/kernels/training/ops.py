"""The compiled kernels as functions of tensors, without autograd.

Tensors lie in channels_last memory, as float32 or bfloat16; the kernels compute in float32. ``sums`` are in float64,
one row of ``C`` each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from yolox.kernels.training import bindings
from yolox.kernels.training.norms import Activation, BatchNorm, NextNorm

CHANNEL_BLOCK = 16
"""Kernels that go pixel by pixel want a multiple of so many channels."""
LARGEST_WINDOW = 15
"""Side of a pooling's windows whose pixels have numbers of 8 bits."""
MOST_CHANNELS = 1024
"""Channels of input and output of `pointwise` together; with more of them oneDNN is as fast or faster."""


class Gradients(NamedTuple):
    """The gradients that the backward pass of a convolution returns.

    Attributes:
        inputs: The gradients of its inputs, or where a normalisation and activation were deferred those before the
            activation; none if not wanted.
        sums: The sums of each of them, as `gradient_sums` returns them; meaningless where nothing was deferred.
        weight: The gradient of the weight, of its shape.
    """

    inputs: tuple[Tensor, ...]
    sums: tuple[Tensor, ...]
    weight: Tensor


def _pixels(x: Tensor) -> int:
    return x.shape[0] * x.shape[2] * x.shape[3]


def _empty(like: Tensor, channels: int) -> Tensor:
    count, _, height, width = like.shape
    return torch.empty(count, channels, height, width, dtype=like.dtype, memory_format=torch.channels_last)


def _sums(channels: int) -> Tensor:
    return torch.empty(2, channels, dtype=torch.float64)


def _split(sums: Tensor, channels: Sequence[int]) -> tuple[Tensor, ...]:
    """Return the sums of so many channels each, without gaps."""
    if len(channels) == 1:
        return (sums,)
    return tuple(part.contiguous() for part in torch.split(sums, list(channels), dim=1))


def _norm(norm: BatchNorm | None) -> bindings.Norm:
    return norm() if norm else bindings.Norm()


def _split_tensor(*tensors: tuple[Tensor, int]) -> bindings.SplitTensor:
    """Return where the channels lie of one tensor or of two, each with the distance of its pixels."""
    if not tensors:
        return bindings.SplitTensor()
    (first, first_stride), (second, second_stride) = tensors[0], tensors[-1]
    return bindings.SplitTensor(first.data_ptr(), first_stride, second.data_ptr(), second_stride, first.shape[1])


def _dense(parts: Sequence[Tensor]) -> bindings.SplitTensor:
    return _split_tensor(*((part, part.shape[1]) for part in parts))


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
    sums = _sums(x.shape[1])
    bindings.call("norm_act_statistics", x.dtype, x, _pixels(x), x.shape[1], sums)
    return sums


def normalise(sums: Tensor, count: float, norm: nn.BatchNorm2d, activation: Activation) -> BatchNorm:
    """Return the normalisation of a batch of ``count`` pixels with those statistics, and move the running ones."""
    mean, var, batches = norm.running_mean, norm.running_var, norm.num_batches_tracked
    assert mean is not None
    assert var is not None
    assert batches is not None
    result = BatchNorm(norm.weight, norm.bias, torch.empty(2, norm.num_features, dtype=torch.float32), activation)
    moving = bindings.Running(mean.data_ptr(), var.data_ptr(), batches.data_ptr(), norm.momentum or 0.0)
    bindings.call("norm_act_moments", None, sums, count, norm.eps, norm.num_features, result(), moving)
    return result


def parameter_gradients(sums: Tensor, norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """Return the gradients of weight and bias, from `gradient_sums` of this process alone."""
    weight, bias = torch.empty_like(norm.weight), torch.empty_like(norm.bias)
    bindings.call("norm_act_parameter_gradients", None, sums, len(weight), norm(), weight, bias)
    return weight, bias


def activate(x: Tensor, norm: BatchNorm, added: Tensor | None = None, added_norm: BatchNorm | None = None) -> Tensor:
    """Return ``norm(x)``, activated, with ``added`` or the activated ``added_norm(added)`` added."""
    y = torch.empty_like(x)
    more = bindings.Residual() if added is None else bindings.Residual(added.data_ptr(), _norm(added_norm))
    bindings.call("norm_act_forward", x.dtype, x, y, _pixels(x), x.shape[1], norm(), more)
    return y


def gradient_sums(grad: Tensor, x: Tensor, norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """Return what the gradient of the activated ``norm(x)`` is before the activation.

    Returns:
        The gradient dz, like ``x``; and its sums ``[2, C]``, its own and of its product with x minus the mean.
    """
    (dy, stride), dz, sums = _strided(grad.to(x.dtype)), torch.empty_like(x), _sums(x.shape[1])
    gradient = bindings.Gradient(dy.data_ptr(), stride, x.data_ptr(), _pixels(x), x.shape[1])
    bindings.call("norm_act_gradient_sums", x.dtype, gradient, dz, norm(), sums)
    return dz, sums


def normalise_backward_(dz: Tensor, sums: Tensor, count: float, x: Tensor, norm: BatchNorm) -> Tensor:
    """Turn the gradient before the activation into that of ``x``, in place."""
    bindings.call("norm_act_backward", x.dtype, x, dz, _pixels(x), x.shape[1], norm(), sums, count)
    return dz


def _images(x: Tensor, stride: int) -> bindings.Images:
    count, channels, height, width = x.shape
    return bindings.Images(count, channels, height, width, stride)


def depthwise(
    x: Tensor, weight: Tensor, stride: int, deferred: BatchNorm | None = None, *, wants_sums: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Return the 3x3 convolution of each channel of ``x``, or of what ``deferred`` makes of it.

    Args:
        x: ``[B, C, H, W]``.
        weight: Float32 ``[C, 1, 3, 3]``.
        stride: 1 or 2.
        deferred: What ``x`` still has to go through.
        wants_sums: Whether to return the sums of `statistics`, too.
    """
    count, channels, height, width = x.shape
    shape = (count, channels, (height - 1) // stride + 1, (width - 1) // stride + 1)
    y = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
    sums = _sums(channels) if wants_sums else None
    bindings.call("depthwise_forward", x.dtype, x, _norm(deferred), y, _images(x, stride), weight, sums)
    return y, sums


def depthwise_backward(
    dy: Tensor | NextNorm,
    x: Tensor,
    weight: Tensor,
    stride: int,
    deferred: BatchNorm | None = None,
    *,
    wants_input: bool,
) -> Gradients:
    """Return the gradients of `depthwise`, itself or followed by a normalisation."""
    after: tuple[Any, ...]
    if isinstance(dy, NextNorm):
        gradient, after = dy.dz, (dy.value, dy.norm(), dy.sums, dy.pixels)
    else:
        gradient, after = dy, (None, bindings.Norm(), None, 0.0)
    gradient = gradient.to(x.dtype).contiguous(memory_format=torch.channels_last)
    inputs = (torch.empty_like(x),) if wants_input else ()
    result = Gradients(inputs, (_sums(x.shape[1]),), torch.empty_like(weight))
    bindings.call(
        *("depthwise_backward", x.dtype, gradient, *after, x, _norm(deferred), inputs[0] if inputs else None),
        *(_images(x, stride), weight, result.weight, result.sums[0]),
    )
    return result


def _shape(x: Tensor, weight: Tensor) -> bindings.Shape:
    return bindings.Shape(_pixels(x), weight.shape[1], weight.shape[0])


def _pair(norms: Sequence[BatchNorm | None]) -> Any:
    return (bindings.Norm * 2)(*(_norm(norm) for norm in norms))


def pointwise(
    parts: Sequence[Tensor],
    deferred: Sequence[BatchNorm | None],
    weight: Tensor,
    channels: Sequence[int],
    bias: Tensor | None = None,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return the 1x1 convolution of ``x``.

    Args:
        parts: One or two tensors whose channels are those of ``x``, side by side.
        deferred: What each part still has to go through.
        weight: Float32 ``[out, in, 1, 1]`` without gaps, rounded on the way.
        channels: So many of the output are a tensor of their own: one number or two.
        bias: Float32 ``[out]``.

    All numbers of channels are multiples of `CHANNEL_BLOCK`.

    Returns:
        The tensors, and the sums of each of them as of `statistics`.
    """
    y, sums = tuple(_empty(parts[0], number) for number in channels), _sums(weight.shape[0])
    shape = _shape(parts[0], weight)
    bindings.call("pointwise_forward", y[0].dtype, _dense(parts), _pair(deferred), shape, weight, bias, _dense(y), sums)
    return y, _split(sums, channels)


def pointwise_backward(
    after: Sequence[NextNorm] | Tensor,
    parts: Sequence[Tensor],
    deferred: Sequence[BatchNorm | None],
    weight: Tensor,
    *,
    wants_input: bool,
    added: Tensor | None = None,
) -> Gradients:
    """Return the gradients of `pointwise`.

    Args:
        after: The normalisations that read each of the tensors it returned; or where nothing follows, the gradient.
        parts: What `pointwise` was given, as are ``deferred`` and ``weight``.
        deferred: See there.
        weight: See there.
        wants_input: Whether to compute the gradients of the parts.
        added: A gradient of the first part after what was deferred, to be added before that is gone through.
    """
    inputs = tuple(torch.empty_like(part) for part in parts) if wants_input else ()
    sums, dweight = _sums(weight.shape[1]), torch.empty_like(weight)
    if isinstance(after, Tensor):
        next_norms, gradients, values = (bindings.NextNorm * 1)(), [_strided(after)], []
    else:
        one_norm = bindings.NextNorm(
            (bindings.Norm * 2)(*(one.norm() for one in after)),
            (bindings.POINTER * 2)(*(one.sums.data_ptr() for one in after)),
            (bindings.DOUBLE * 2)(*(one.pixels for one in after)),
        )
        next_norms = (bindings.NextNorm * 1)(one_norm)  # by address
        gradients, values = [_strided(one.dz) for one in after], [one.value for one in after]
    more = () if added is None else (_strided(added),)
    bindings.call(
        *("pointwise_backward", gradients[0][0].dtype, _split_tensor(*gradients), _dense(values)),
        *(next_norms, _dense(parts), _pair(deferred), _split_tensor(*more), _dense(inputs)),
        *(_shape(parts[0], weight), weight, dweight, sums),
    )
    return Gradients(inputs, _split(sums, [part.shape[1] for part in parts]), dweight)


def _window(x: Tensor, side: int) -> bindings.Window:
    count, channels, height, width = x.shape
    return bindings.Window(count, channels, height, width, side)


def max_pool(x: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return the maxima over windows around each pixel, and which pixel of its window each of them is.

    Args:
        x: ``[B, C, H, W]``, C a multiple of `CHANNEL_BLOCK`.
        side: Of the windows, odd and at most `LARGEST_WINDOW`.
    """
    y, places = torch.empty_like(x), torch.empty_like(x, dtype=torch.uint8)
    bindings.call("max_pool_forward", x.dtype, x, y, places, _window(x, side))
    return y, places


def max_pool_backward(grad: Tensor, places: Tensor, side: int) -> Tensor:
    """Return the gradient of the input of `max_pool`; ``grad`` lies without gaps."""
    dx = torch.empty_like(grad)
    bindings.call("max_pool_backward", grad.dtype, grad, places, dx, _window(grad, side))
    return dx


def _stem_input(images: Tensor, outputs: int) -> bindings.StemInput:
    count, _, height, width = images.shape
    return bindings.StemInput(images.data_ptr(), int(images.dtype == torch.float32), count, height, width, outputs)


def stem(images: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the 6x6 convolution of stride 2 and padding 2 in bfloat16, and its sums as of `statistics`.

    Args:
        images: ``[B, 3, H, W]``, uint8 or float32, H and W even.
        weight: Float32 ``[out, 6, 6, 3]`` without gaps, the channels last; out a multiple of `CHANNEL_BLOCK`.
    """
    count, _, height, width = images.shape
    shape = (count, len(weight), height // 2, width // 2)
    y = torch.empty(shape, dtype=torch.bfloat16, memory_format=torch.channels_last)
    sums = _sums(len(weight))
    bindings.call("stem_forward", y.dtype, _stem_input(images, len(weight)), weight, y, sums)
    return y, sums


def stem_backward(after: NextNorm, images: Tensor) -> Tensor:
    """Return the gradient of the weight of `stem`, followed by a normalisation."""
    outputs = after.value.shape[1]
    dweight = torch.empty(outputs, 6, 6, 3, dtype=torch.float32)
    dz = after.dz.contiguous(memory_format=torch.channels_last)
    own = (after.value, after.norm(), after.sums, after.pixels)
    bindings.call("stem_backward", dz.dtype, dz, *own, _stem_input(images, outputs), dweight)
    return dweight
