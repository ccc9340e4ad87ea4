"""Necks: a backbone, and the paths that mix its feature maps. Attribute names are the official state-dict keys."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from yolox.kernels.training.deferred import Features, activated
from yolox.models.csp_darknet import CspDarknet
from yolox.models.darknet53 import Darknet53
from yolox.models.layers import Block, ConvBnAct, CspLayer, conv_block, pending
from yolox.models.shortcuts import side_by_side

__all__ = ["PaFpn", "YoloFpn"]


def _upsample(x: Features) -> Tensor:
    return F.interpolate(activated(x), scale_factor=2.0, mode="nearest")


class PaFpn(Block):
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

    def pending(self, images: Tensor) -> tuple[Features, Features, Features]:
        """Return mixed feature maps of strides 8, 16 and 32."""
        stride8, stride16, stride32 = pending(self.backbone, images)
        top = pending(self.lateral_conv0, stride32)
        middle = pending(self.reduce_conv1, pending(self.C3_p4, _upsample(top), stride16))
        out8 = pending(self.C3_p3, _upsample(middle), stride8)
        out16 = pending(self.C3_n3, pending(self.bu_conv2, out8), middle)
        out32 = pending(self.C3_n4, pending(self.bu_conv1, out16), top)
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
        out16 = self.out1(side_by_side(_upsample(self.out1_cbl(out32)), stride16))
        out8 = self.out2(side_by_side(_upsample(self.out2_cbl(out16)), stride8))
        return out8, out16, out32
