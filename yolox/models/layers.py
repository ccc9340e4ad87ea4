"""The blocks YOLOX is built of. Attribute names are the official state-dict keys and may not change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolox.errors import UsageError
from yolox.kernels.training.autograd import batchnorm_silu, fits_batchnorm_silu, watched
from yolox.kernels.training.deferred import (
    Features,
    Pending,
    activated,
    add_shortcut,
    depthwise_block,
    left_pending,
    pointwise_block,
    pointwise_with_shortcut,
    stem_block,
)
from yolox.kernels.training.ops import CHANNEL_BLOCK
from yolox.models.depthwise import DepthwiseConv2d
from yolox.models.shortcuts import (
    dense_gradient,
    fits_depthwise,
    fits_pointwise,
    fits_stem,
    follows_official_rounding,
    may_wait,
    side_by_side,
)

__all__ = [
    "Block",
    "Bottleneck",
    "ConvBnAct",
    "CspLayer",
    "DepthwiseConv",
    "Focus",
    "ResLayer",
    "SppBottleneck",
    "activation",
    "as_float",
    "conv_block",
    "pending",
]

BN_EPS, BN_MOMENTUM = 1e-3, 0.03  # of the official models; PyTorch's defaults cost published weights their AP


def activation(name: str) -> nn.Module:
    """Return the activation called ``silu``, ``relu`` or ``lrelu`` (slope 0.1).

    Raises:
        UsageError: For any other name.
    """
    if name == "silu":
        return nn.SiLU()  # not in place: autograd would clone the input first
    if name == "relu":
        return nn.ReLU(inplace=True)
    if name == "lrelu":
        return nn.LeakyReLU(0.1, inplace=True)
    raise UsageError(f"activation got '{name}', expected silu, relu or lrelu. Set model.act to one of them.")


class Block(nn.Module):
    """A part of the network; between two of them a normalisation and activation may be pending: see `Pending`."""

    def pending(self, *inputs: Any) -> Any:
        """Return what `forward` does, perhaps with its end left to the readers; so may be what is given."""
        raise NotImplementedError

    def forward(self, *inputs: Features) -> Any:
        """Return feature maps, or a tuple of them."""
        found = self.pending(*inputs)
        return tuple(activated(one) for one in found) if isinstance(found, tuple) else activated(found)


def pending(module: nn.Module, *inputs: Features) -> Any:
    """Return what the module returns, perhaps with its end left to the readers.

    A module that somebody watches, or that is not one of ours, is called with feature maps and returns feature maps.
    """
    if module.training and not watched(module) and all(may_wait(x) for x in inputs):
        if type(module) is nn.Sequential:
            (x,) = inputs
            for part in module:
                x = pending(part, x)
            return x
        if isinstance(module, Block) and type(module).forward is Block.forward:
            return module.pending(*inputs)
    return module(*[activated(x) for x in inputs])


class ConvBnAct(Block):
    """Convolution without bias, batch normalisation, activation.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel: Side of the square kernel; the padding keeps the size at stride 1.
        stride: 1 or 2.
        groups: Groups of the convolution.
        act: See `activation`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1, act: str = "silu"
    ) -> None:
        super().__init__()
        padding = (kernel - 1) // 2
        kind = DepthwiseConv2d if groups == in_channels == out_channels > 1 else nn.Conv2d
        self.conv: nn.Conv2d = kind(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=BN_EPS, momentum=BN_MOMENTUM)
        self.act = activation(act)

    def pending(self, x: Features) -> Features:
        """Map ``[B, in, H, W]`` to ``[B, out, H / stride, W / stride]``."""
        if fits_pointwise((x,), self):
            return _pointwise((x,), self)[0]
        if fits_depthwise(x, self):
            return depthwise_block(_in_bfloat16(x), self.conv.weight, self.conv.stride[0], self.bn)
        return self.normalise(self.conv(activated(x)))

    def normalise(self, x: Tensor) -> Features:
        """Return the output of the convolution, normalised and activated or to be."""
        if not fits_batchnorm_silu(x, self.bn, self.act):
            y: Tensor = self.act(self.bn(x))
            return y
        if may_wait(x) and x.dtype == torch.bfloat16 and x.shape[1] % CHANNEL_BLOCK == 0:
            return left_pending(x, self.bn)
        return batchnorm_silu(x, self.bn)


def _in_bfloat16(x: Features) -> Features:
    return x if isinstance(x, Pending) else x.bfloat16()


def _pointwise(parts: Sequence[Features], *blocks: ConvBnAct) -> tuple[Pending, ...]:
    weights = [block.conv.weight for block in blocks]
    weight = weights[0] if len(weights) == 1 else torch.cat(weights)
    return pointwise_block([_in_bfloat16(part) for part in parts], weight, [block.bn for block in blocks])


def _may_be_skipped(*blocks: nn.Module) -> bool:
    """Whether the blocks may be computed without being called."""
    return all(type(block) is ConvBnAct and not watched(block) for block in blocks)


class DepthwiseConv(Block):
    """A convolution per channel followed by a 1x1 convolution over channels; arguments as for `ConvBnAct`."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, act: str = "silu") -> None:
        super().__init__()
        self.dconv = ConvBnAct(in_channels, in_channels, kernel, stride, groups=in_channels, act=act)
        self.pconv = ConvBnAct(in_channels, out_channels, 1, act=act)

    def pending(self, x: Features) -> Features:
        """Map ``[B, in, H, W]`` to ``[B, out, H / stride, W / stride]``."""
        y: Features = pending(self.pconv, pending(self.dconv, x))
        return y


def conv_block(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, *, depthwise: bool, act: str
) -> nn.Module:
    """Return a `DepthwiseConv` or a `ConvBnAct` of these measures."""
    if depthwise:
        return DepthwiseConv(in_channels, out_channels, kernel, stride, act=act)
    return ConvBnAct(in_channels, out_channels, kernel, stride, act=act)


class Bottleneck(Block):
    """1x1 convolution, 3x3 convolution, and the input added where asked for and where channels agree."""

    def __init__(self, in_channels: int, out_channels: int, *, shortcut: bool, depthwise: bool, act: str) -> None:
        super().__init__()
        self.conv1 = ConvBnAct(in_channels, out_channels, 1, act=act)
        self.conv2 = conv_block(out_channels, out_channels, 3, depthwise=depthwise, act=act)
        self.shortcut = shortcut and in_channels == out_channels

    def pending(self, x: Features) -> Features:
        """Map ``[B, in, H, W]`` to ``[B, out, H, W]``."""
        first = self.conv1
        if self.shortcut and _may_be_skipped(first) and fits_pointwise((x,), first):
            inner, around = pointwise_with_shortcut(_in_bfloat16(x), first.conv.weight, first.bn)
            y = pending(self.conv2, inner)
            return add_shortcut(y, around) if isinstance(y, Pending) else activated(x) + y
        y = pending(self.conv2, pending(first, x))
        return activated(x) + activated(y) if self.shortcut else y


class CspLayer(Block):
    """Cross-stage partial layer: half of the channels through ``depth`` bottlenecks, half around them, then fused."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        depth: int,
        *,
        shortcut: bool = True,
        depthwise: bool = False,
        act: str = "silu",
    ) -> None:
        super().__init__()
        hidden = out_channels // 2
        self.shortcut = shortcut
        self.conv1 = ConvBnAct(in_channels, hidden, 1, act=act)
        self.conv2 = ConvBnAct(in_channels, hidden, 1, act=act)
        self.conv3 = ConvBnAct(2 * hidden, out_channels, 1, act=act)
        self.m = nn.Sequential(
            *(Bottleneck(hidden, hidden, shortcut=shortcut, depthwise=depthwise, act=act) for _ in range(depth))
        )

    def pending(self, *parts: Features) -> Features:
        """Map ``[B, in, H, W]``, whole or as two with some of the channels each, to ``[B, out, H, W]``."""
        first, second = self._halves(parts)
        inner = pending(self.m, first)
        if _may_be_skipped(self.conv3) and fits_pointwise((inner, second), self.conv3):
            return _pointwise((inner, second), self.conv3)[0]  # side by side only in the convolution's eyes
        inner, second = activated(inner), activated(second)
        if self.shortcut:
            inner = dense_gradient(inner)
        y: Features = pending(self.conv3, torch.cat((inner, second), dim=1))
        return y

    def _halves(self, parts: Sequence[Features]) -> tuple[Features, Features]:
        """Return what goes through the bottlenecks and what goes around them."""
        one, two = self.conv1, self.conv2
        # alike, seen by nobody, and within this process
        alone = _may_be_skipped(one, two) and type(one.bn) is type(two.bn) is nn.BatchNorm2d
        if alone and fits_pointwise(parts, one, two):
            first, second = _pointwise(parts, one, two)
            return first, second
        x = parts[0] if len(parts) == 1 else side_by_side(*parts)
        return pending(one, x), pending(two, x)


class SppBottleneck(Block):
    """Spatial pyramid pooling: the input beside its maxima over 5x5, 9x9 and 13x13 windows."""

    def __init__(self, in_channels: int, out_channels: int, act: str = "silu") -> None:
        super().__init__()
        hidden = in_channels // 2
        self.conv1 = ConvBnAct(in_channels, hidden, 1, act=act)
        self.conv2 = ConvBnAct(4 * hidden, out_channels, 1, act=act)

    def pending(self, x: Features) -> Features:
        """Map ``[B, in, H, W]`` to ``[B, out, H, W]``."""
        x = activated(pending(self.conv1, x))
        if follows_official_rounding(self, x):
            pools = [F.max_pool2d(x, side, stride=1, padding=side // 2) for side in (5, 9, 13)]
            exact: Features = pending(self.conv2, torch.cat((x, *pools), dim=1))
            return exact
        # Windows of 5 after each other are exactly windows of 9 and 13, for 75 comparisons a pixel instead of 275;
        # only the gradients of equal pixels (letterbox margins) go to another one of them.
        pool5 = F.max_pool2d(x, 5, stride=1, padding=2)
        pool9 = F.max_pool2d(pool5, 5, stride=1, padding=2)
        pool13 = F.max_pool2d(pool9, 5, stride=1, padding=2)
        y: Features = pending(self.conv2, torch.cat((x, pool5, pool9, pool13), dim=1))
        return y


class Focus(Block):
    """Each 2x2 block of pixels becomes one pixel of four times the channels, then a 3x3 convolution.

    Eagerly, in bf16 and in evaluation, both are computed as the one 6x6 convolution of stride 2 that they are together:
    without the copy, the stem takes about two thirds of the time. Conversions see the plain form, whose weight
    quantizers and fusions recognise.
    """

    def __init__(self, in_channels: int, out_channels: int, act: str = "silu") -> None:
        super().__init__()
        self.conv = ConvBnAct(4 * in_channels, out_channels, 3, act=act)

    def pending(self, x: Tensor) -> Features:
        """Map ``[B, in, H, W]``, float or uint8, to ``[B, out, H / 2, W / 2]``."""
        tracing = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        # A replaced convolution (prepacked, quantized, parametrized) may not have a weight that can be rearranged.
        plain = tracing or torch.compiler.is_compiling() or type(self.conv.conv) is not nn.Conv2d
        if plain or follows_official_rounding(self, x):
            y: Tensor = self.conv(as_float(self.space_to_depth(x)))  # bytes are cheaper to move than floats
            return y
        if _may_be_skipped(self.conv) and fits_stem(x, self.conv):
            return stem_block(x, self._weight_6x6(), self.conv.bn)
        return self.conv.normalise(F.conv2d(as_float(x), self._weight_6x6(), self.conv.conv.bias, stride=2, padding=2))

    @staticmethod
    def space_to_depth(x: Tensor) -> Tensor:
        """Map ``[B, C, H, W]`` to ``[B, 4 C, H / 2, W / 2]``, channels_last if the input is."""
        # One transposition instead of four strided slices, which inference engines copy pixel by pixel. The order is
        # that of the official weights: top left, bottom left, top right, bottom right.
        batch, channels, height, width = x.shape
        # Axis 3 is top and bottom, axis 5 left and right of a block.
        blocks = x.reshape(batch, channels, height // 2, 2, width // 2, 2)
        if x.is_contiguous(memory_format=torch.channels_last):
            return blocks.permute(0, 2, 4, 5, 3, 1).flatten(3).permute(0, 3, 1, 2)
        return blocks.permute(0, 5, 3, 1, 2, 4).flatten(1, 3)

    def _weight_6x6(self) -> Tensor:
        """Return the 3x3 weight over blocks as the 6x6 weight over pixels."""
        weight = self.conv.conv.weight
        num_out, num_blocks = weight.shape[:2]
        blocks = weight.reshape(num_out, 2, 2, num_blocks // 4, 3, 3)  # out, column, row, in, and the kernel's two axes
        pixels = blocks.permute(0, 3, 4, 2, 5, 1).reshape(num_out, num_blocks // 4, 6, 6)
        if weight.is_contiguous(memory_format=torch.channels_last):
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        return pixels


def as_float(x: Tensor) -> Tensor:
    """Return pixels as floats, under autocast of its type, which holds 0...255 exactly; floats as they are."""
    if x.is_floating_point():
        return x
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32)


class ResLayer(nn.Module):
    """Darknet's residual layer: 1x1 convolution to half the channels, 3x3 back, and the input added."""

    def __init__(self, channels: int, act: str = "lrelu") -> None:
        super().__init__()
        self.layer1 = ConvBnAct(channels, channels // 2, 1, act=act)
        self.layer2 = ConvBnAct(channels // 2, channels, 3, act=act)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, C, H, W]`` to the same shape."""
        y: Tensor = self.layer2(self.layer1(x))
        return x + y
