"""The Darknet53 backbone of the yolov3 variant."""

from __future__ import annotations

from torch import Tensor, nn

from yolox.models.layers import ConvBnAct, ResLayer, SppBottleneck, as_float


class Darknet53(nn.Module):
    """Turns an image into feature maps of strides 8, 16 and 32 with 256, 512 and 512 channels.

    Args:
        act: See `yolox.models.layers.activation`; published weights use ``lrelu``.
    """

    def __init__(self, act: str = "lrelu") -> None:
        super().__init__()

        def stage(in_channels: int, num: int) -> list[nn.Module]:
            down = ConvBnAct(in_channels, 2 * in_channels, 3, stride=2, act=act)
            return [down, *(ResLayer(2 * in_channels, act=act) for _ in range(num))]

        self.out_channels = (256, 512, 512)
        self.stem = nn.Sequential(ConvBnAct(3, 32, 3, act=act), *stage(32, 1))
        self.dark2 = nn.Sequential(*stage(64, 2))
        self.dark3 = nn.Sequential(*stage(128, 8))
        self.dark4 = nn.Sequential(*stage(256, 8))
        self.dark5 = nn.Sequential(
            *stage(512, 4),
            ConvBnAct(1024, 512, 1, act=act),
            ConvBnAct(512, 1024, 3, act=act),
            SppBottleneck(1024, 512, act=act),
            ConvBnAct(512, 1024, 3, act=act),
            ConvBnAct(1024, 512, 1, act=act),
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the feature maps of strides 8, 16 and 32."""
        stride8 = self.dark3(self.dark2(self.stem(as_float(images))))
        stride16 = self.dark4(stride8)
        return stride8, stride16, self.dark5(stride16)
