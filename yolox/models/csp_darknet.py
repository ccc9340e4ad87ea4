"""The CSPDarknet backbone of YOLOX nano to x."""

from __future__ import annotations

from torch import Tensor, nn

from yolox.models.layers import CspLayer, Focus, SppBottleneck, conv_block


class CspDarknet(nn.Module):
    """Turns an image into feature maps of strides 8, 16 and 32.

    Args:
        depth: Factor on the number of bottlenecks.
        width: Factor on the channels.
        depthwise: Depthwise 3x3 convolutions (nano).
        act: See `yolox.models.layers.activation`.
    """

    def __init__(self, depth: float, width: float, *, depthwise: bool = False, act: str = "silu") -> None:
        super().__init__()
        base, repeats = int(64 * width), max(round(3 * depth), 1)
        self.out_channels = (4 * base, 8 * base, 16 * base)
        self.stem = Focus(3, base, act=act)

        def stage(scale: int, num: int) -> list[nn.Module]:
            half, full = base * scale // 2, base * scale
            down = conv_block(half, full, 3, stride=2, depthwise=depthwise, act=act)
            last = scale == 16
            pooling = [SppBottleneck(full, full, act=act)] if last else []
            return [down, *pooling, CspLayer(full, full, num, shortcut=not last, depthwise=depthwise, act=act)]

        self.dark2 = nn.Sequential(*stage(2, repeats))
        self.dark3 = nn.Sequential(*stage(4, 3 * repeats))
        self.dark4 = nn.Sequential(*stage(8, 3 * repeats))
        self.dark5 = nn.Sequential(*stage(16, repeats))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the feature maps of strides 8, 16 and 32."""
        stride8 = self.dark3(self.dark2(self.stem(images)))
        stride16 = self.dark4(stride8)
        return stride8, stride16, self.dark5(stride16)
