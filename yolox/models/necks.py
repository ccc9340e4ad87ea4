"""Necks: a backbone, and the paths that mix its feature maps. Attribute names are the official state-dict keys."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolox.models.csp_darknet import CspDarknet
from yolox.models.darknet53 import Darknet53
from yolox.models.layers import ConvBnAct, CspLayer, conv_block


def _beside(top: Tensor, side: Tensor) -> Tensor:
    """Return ``top`` at twice its size, and the channels of ``side`` after its own."""
    return torch.cat((F.interpolate(top, scale_factor=2.0, mode="nearest"), side), dim=1)


class PaFpn(nn.Module):
    """Path aggregation network on CSPDarknet: top-down, then bottom-up. Arguments as for `CspDarknet`."""

    def __init__(self, depth: float, width: float, *, depthwise: bool = False, act: str = "silu") -> None:
        super().__init__()
        self.backbone = CspDarknet(depth, width, depthwise=depthwise, act=act)
        small, medium, large = int(256 * width), int(512 * width), int(1024 * width)
        self.out_channels = (small, medium, large)
        repeats = round(3 * depth)

        def csp(in_channels: int, out_channels: int) -> CspLayer:
            return CspLayer(in_channels, out_channels, repeats, shortcut=False, depthwise=depthwise, act=act)

        def down(channels: int) -> nn.Module:
            return conv_block(channels, channels, 3, stride=2, depthwise=depthwise, act=act)

        self.lateral_conv0 = ConvBnAct(large, medium, 1, act=act)
        self.C3_p4 = csp(2 * medium, medium)
        self.reduce_conv1 = ConvBnAct(medium, small, 1, act=act)
        self.C3_p3 = csp(2 * small, small)
        self.bu_conv2 = down(small)
        self.C3_n3 = csp(2 * small, medium)
        self.bu_conv1 = down(medium)
        self.C3_n4 = csp(2 * medium, large)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return mixed feature maps of strides 8, 16 and 32."""
        stride8, stride16, stride32 = self.backbone(images)
        top = self.lateral_conv0(stride32)
        middle = self.reduce_conv1(self.C3_p4(_beside(top, stride16)))
        out8 = self.C3_p3(_beside(middle, stride8))
        out16 = self.C3_n3(torch.cat((self.bu_conv2(out8), middle), dim=1))
        out32 = self.C3_n4(torch.cat((self.bu_conv1(out16), top), dim=1))
        return out8, out16, out32


class YoloFpn(nn.Module):
    """Feature pyramid of YOLOv3 on Darknet53.

    Args:
        act: See `yolox.models.layers.activation`.
    """

    def __init__(self, act: str = "lrelu") -> None:
        super().__init__()
        self.backbone = Darknet53(act=act)
        self.out_channels = (128, 256, 512)

        def mix(in_channels: int, hidden: int) -> nn.Sequential:
            return nn.Sequential(
                ConvBnAct(in_channels, hidden, 1, act=act),
                ConvBnAct(hidden, 2 * hidden, 3, act=act),
                ConvBnAct(2 * hidden, hidden, 1, act=act),
                ConvBnAct(hidden, 2 * hidden, 3, act=act),
                ConvBnAct(2 * hidden, hidden, 1, act=act),
            )

        self.out1_cbl = ConvBnAct(512, 256, 1, act=act)
        self.out1 = mix(256 + 512, 256)
        self.out2_cbl = ConvBnAct(256, 128, 1, act=act)
        self.out2 = mix(128 + 256, 128)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return mixed feature maps of strides 8, 16 and 32."""
        stride8, stride16, out32 = self.backbone(images)
        out16 = self.out1(_beside(self.out1_cbl(out32), stride16))
        out8 = self.out2(_beside(self.out2_cbl(out16), stride8))
        return out8, out16, out32
