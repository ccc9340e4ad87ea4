"""When training may go shorter ways than the plain layers, and two such ways."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import has_torch_function_unary

from yolox.kernels.training.autograd import fits, fits_batchnorm_silu, knows, recording, watched
from yolox.kernels.training.bindings import has_pointwise
from yolox.kernels.training.deferred import Features, Pending, activated, in_memory, pointwise_prediction
from yolox.kernels.training.ops import CHANNEL_BLOCK, MOST_CHANNELS
from yolox.models.depthwise import DepthwiseConv2d

__all__ = [
    "dense_gradient",
    "fits_depthwise",
    "fits_pointwise",
    "fits_stem",
    "follows_official_rounding",
    "in_bfloat16",
    "is_plain",
    "joined_conv",
    "may_wait",
    "side_by_side",
]


def follows_official_rounding(module: nn.Module, x: Tensor) -> bool:
    """Whether this is fp32 training, where each sum keeps its official order.

    Shortcuts that are equal on paper change the last bits, and training amplifies those to percents within some steps
    (the gradient of the stem has a norm of 900); then nobody could tell a shortcut from a mistake.
    """
    if x.is_meta or not (module.training and torch.is_grad_enabled()):
        return False
    return x.dtype == torch.float32 and not torch.is_autocast_enabled(x.device.type)


def in_bfloat16(x: Tensor) -> bool:
    """Whether convolutions of ``x`` compute in bfloat16, from parameters in float32 or not."""
    return (torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype) == torch.bfloat16


def may_wait(x: Features) -> bool:
    """Whether readers of what a layer makes of ``x`` can do its normalisation and activation: see `Pending`."""
    if isinstance(x, Pending):
        return True
    return in_bfloat16(x) and torch.is_grad_enabled() and not recording() and has_pointwise()


class Convolution(Protocol):
    """A convolution, a normalisation and an activation."""

    conv: nn.Conv2d
    bn: nn.BatchNorm2d
    act: nn.Module


def is_plain(conv: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether calling the convolution means its formula and nothing else."""
    return type(conv) is nn.Conv2d and conv.training and conv.groups == 1 and not watched(conv)


def fits_pointwise(parts: Sequence[Features], *blocks: Convolution) -> bool:
    """Whether `pointwise_block` does what the blocks do with the parts side by side."""
    tensors = [in_memory(part) for part in parts]
    if not all(may_wait(x) and fits(x) and x.shape[1] % CHANNEL_BLOCK == 0 for x in tensors):
        return False
    if tensors[0][:, 0].numel() == 1:  # a batch of one value a channel is refused by PyTorch's layer
        return False
    channels = sum(x.shape[1] for x in tensors) + sum(block.conv.out_channels for block in blocks)
    return channels <= MOST_CHANNELS and all(
        is_plain(block.conv)
        and block.conv.kernel_size == block.conv.stride == (1, 1)
        and block.conv.padding == (0, 0)
        and block.conv.bias is None
        and block.conv.out_channels % CHANNEL_BLOCK == 0
        and block.conv.weight.dtype == torch.float32
        and knows(block.bn, block.act)
        for block in blocks
    )


def fits_depthwise(x: Features, block: Convolution) -> bool:
    """Whether `depthwise_block` does what the block does with ``x``."""
    conv, values = block.conv, in_memory(x)
    known = isinstance(conv, DepthwiseConv2d) and conv.is_three_by_three and conv.training and not watched(conv)
    if not (known and may_wait(values) and fits_batchnorm_silu(values, block.bn, block.act)):
        return False
    count, _, height, width = values.shape
    pixels = count * math.ceil(height / conv.stride[0]) * math.ceil(width / conv.stride[0])
    return pixels > 1  # see above


def fits_stem(images: Tensor, block: Convolution) -> bool:
    """Whether `stem_block` does what `Focus` does with this block after it."""
    conv = block.conv
    if not (may_wait(images) and is_plain(conv) and knows(block.bn, block.act)) or has_torch_function_unary(images):
        return False
    count, channels, height, width = images.shape
    several = count * (height // 2) * (width // 2) > 1  # see above
    known = images.dtype in {torch.uint8, torch.float32} and not images.requires_grad and images.device.type == "cpu"
    usual = conv.kernel_size == (3, 3) and conv.bias is None and conv.weight.dtype == torch.float32
    return known and several and channels == 3 and usual and conv.out_channels % CHANNEL_BLOCK == 0


def side_by_side(*parts: Features) -> Tensor:
    """Return the channels of all parts as one tensor."""
    return torch.cat([dense_gradient(activated(part)) for part in parts], dim=1)


def dense_gradient(x: Tensor) -> Tensor:
    """Return ``x``; in training its gradient comes back without gaps in memory.

    From a concatenation PyTorch hands back parts of one tensor with gaps from pixel to pixel. To add those up, or to
    take them through an upsampling, takes three to eight times as long as a copy without gaps. A layer that ends in
    `batchnorm_silu` reads them as they are.
    """
    if not (x.requires_grad and fits(x)):
        return x
    y: Tensor = _DenseGradient.apply(x)  # type: ignore[no-untyped-call]
    return y


class _DenseGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].contiguous(memory_format=torch.channels_last)


def joined_conv(x: Features, *convs: nn.Module) -> Tensor | None:
    """Return 1x1 convolutions of one input, with a bias, side by side as one convolution; None where that may not be.

    One reads the input once, and there is one gradient of the input instead of several to be written and added up. It
    is for training in bf16 alone: see `follows_official_rounding`; and evaluation shows conversions the plain layers.
    """
    plain = [conv for conv in convs if is_plain(conv) and conv.bias is not None and conv.kernel_size == (1, 1)]
    values = in_memory(x)
    if not fits(values) or follows_official_rounding(convs[0], values) or len(plain) < len(convs):
        return None
    weight = torch.cat([conv.weight for conv in plain])
    bias = torch.cat([conv.bias for conv in plain if conv.bias is not None])
    types = (values.dtype, weight.dtype) == (torch.bfloat16, torch.float32)
    if types and may_wait(x) and values.shape[1] % CHANNEL_BLOCK == 0:
        return pointwise_prediction(x, weight, bias)
    return F.conv2d(activated(x), weight, bias).contiguous(memory_format=torch.channels_last)
