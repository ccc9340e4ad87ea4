"""The blocks YOLOX is built of. Attribute names are the official state-dict keys and may not change."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolox.errors import UsageError

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


class ConvBnAct(nn.Module):
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
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=BN_EPS, momentum=BN_MOMENTUM)
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, in, H, W]`` to ``[B, out, H / stride, W / stride]``."""
        y: Tensor = self.act(self.bn(self.conv(x)))
        return y


class DepthwiseConv(nn.Module):
    """A convolution per channel followed by a 1x1 convolution over channels; arguments as for `ConvBnAct`."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, act: str = "silu") -> None:
        super().__init__()
        self.dconv = ConvBnAct(in_channels, in_channels, kernel, stride, groups=in_channels, act=act)
        self.pconv = ConvBnAct(in_channels, out_channels, 1, act=act)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, in, H, W]`` to ``[B, out, H / stride, W / stride]``."""
        y: Tensor = self.pconv(self.dconv(x))
        return y


def conv_block(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, *, depthwise: bool, act: str
) -> nn.Module:
    """Return a `DepthwiseConv` or a `ConvBnAct` of these measures."""
    if depthwise:
        return DepthwiseConv(in_channels, out_channels, kernel, stride, act=act)
    return ConvBnAct(in_channels, out_channels, kernel, stride, act=act)


class Bottleneck(nn.Module):
    """1x1 convolution, 3x3 convolution, and the input added where asked for and where channels agree."""

    def __init__(self, in_channels: int, out_channels: int, *, shortcut: bool, depthwise: bool, act: str) -> None:
        super().__init__()
        self.conv1 = ConvBnAct(in_channels, out_channels, 1, act=act)
        self.conv2 = conv_block(out_channels, out_channels, 3, depthwise=depthwise, act=act)
        self.shortcut = shortcut and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, in, H, W]`` to ``[B, out, H, W]``."""
        y: Tensor = self.conv2(self.conv1(x))
        return x + y if self.shortcut else y


class CspLayer(nn.Module):
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
        self.conv1 = ConvBnAct(in_channels, hidden, 1, act=act)
        self.conv2 = ConvBnAct(in_channels, hidden, 1, act=act)
        self.conv3 = ConvBnAct(2 * hidden, out_channels, 1, act=act)
        self.m = nn.Sequential(
            *(Bottleneck(hidden, hidden, shortcut=shortcut, depthwise=depthwise, act=act) for _ in range(depth))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, in, H, W]`` to ``[B, out, H, W]``."""
        y: Tensor = self.conv3(torch.cat((self.m(self.conv1(x)), self.conv2(x)), dim=1))
        return y


class SppBottleneck(nn.Module):
    """Spatial pyramid pooling: the input beside its maxima over 5x5, 9x9 and 13x13 windows."""

    def __init__(self, in_channels: int, out_channels: int, act: str = "silu") -> None:
        super().__init__()
        hidden = in_channels // 2
        self.conv1 = ConvBnAct(in_channels, hidden, 1, act=act)
        self.conv2 = ConvBnAct(4 * hidden, out_channels, 1, act=act)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, in, H, W]`` to ``[B, out, H, W]``."""
        x = self.conv1(x)
        # Windows of 5 after each other are exactly windows of 9 and 13, for 75 comparisons a pixel instead of 275.
        pool5 = F.max_pool2d(x, 5, stride=1, padding=2)
        pool9 = F.max_pool2d(pool5, 5, stride=1, padding=2)
        pool13 = F.max_pool2d(pool9, 5, stride=1, padding=2)
        y: Tensor = self.conv2(torch.cat((x, pool5, pool9, pool13), dim=1))
        return y


class Focus(nn.Module):
    """Each 2x2 block of pixels becomes one pixel of four times the channels, then a 3x3 convolution."""

    def __init__(self, in_channels: int, out_channels: int, act: str = "silu") -> None:
        super().__init__()
        self.conv = ConvBnAct(4 * in_channels, out_channels, 3, act=act)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, in, H, W]``, float or uint8, to ``[B, out, H / 2, W / 2]``."""
        blocks = space_to_depth(x)
        y: Tensor = self.conv(blocks if x.is_floating_point() else blocks.float())  # bytes are cheaper to move
        return y


def space_to_depth(x: Tensor) -> Tensor:
    """Map ``[B, C, H, W]`` to ``[B, 4 C, H / 2, W / 2]``; H and W are even.

    The order is that of the official weights: top left, bottom left, top right, bottom right, each with all channels.
    It is one transposition instead of four strided slices, which inference engines copy pixel by pixel.
    """
    batch, channels, height, width = x.shape
    blocks = x.reshape(batch, channels, height // 2, 2, width // 2, 2)  # axis 3: top, bottom; axis 5: left, right
    return blocks.permute(0, 5, 3, 1, 2, 4).flatten(1, 3)


def as_float(x: Tensor) -> Tensor:
    """Return pixels as float32, floats as they are."""
    return x if x.is_floating_point() else x.float()


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
