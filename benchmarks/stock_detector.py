"""YOLOX nano to x in PyTorch's plain layers, as a tutorial would write it: the stock side of the comparisons.

It is kept apart from ``yolox.models`` on purpose: what is gained there may not speed up what it is compared with.
Keys and results are those of the official network.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolox.config import ModelConfig
from yolox.structures import Predictions, Size


class _Conv(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-3, momentum=0.03)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.bn(self.conv(x)))
        return y


class _DepthwiseConv(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.dconv = _Conv(in_channels, in_channels, kernel, stride, groups=in_channels)
        self.pconv = _Conv(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.pconv(self.dconv(x))
        return y


class _Bottleneck(nn.Module):
    def __init__(self, channels: int, shortcut: bool, conv: type[nn.Module]) -> None:
        super().__init__()
        self.conv1 = _Conv(channels, channels, 1)
        self.conv2 = conv(channels, channels, 3)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv2(self.conv1(x))
        return y + x if self.shortcut else y


class _Csp(nn.Module):
    def __init__(
        self, in_channels: int, out_channels: int, depth: int, conv: type[nn.Module], shortcut: bool = False
    ) -> None:
        super().__init__()
        hidden = out_channels // 2
        self.conv1 = _Conv(in_channels, hidden, 1)
        self.conv2 = _Conv(in_channels, hidden, 1)
        self.conv3 = _Conv(2 * hidden, out_channels, 1)
        self.m = nn.Sequential(*(_Bottleneck(hidden, shortcut, conv) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv3(torch.cat((self.m(self.conv1(x)), self.conv2(x)), dim=1))
        return y


class _Spp(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = _Conv(channels, channels // 2, 1)
        self.conv2 = _Conv(2 * channels, channels, 1)
        self.m = nn.ModuleList(nn.MaxPool2d(side, 1, side // 2) for side in (5, 9, 13))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        y: Tensor = self.conv2(torch.cat([x, *(pool(x) for pool in self.m)], dim=1))
        return y


class _Focus(nn.Module):
    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.conv = _Conv(12, out_channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        corners = (x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2])
        y: Tensor = self.conv(torch.cat(corners, dim=1))
        return y


class _Backbone(nn.Module):
    def __init__(self, depth: float, width: float, conv: type[nn.Module]) -> None:
        super().__init__()
        base, repeats = int(64 * width), max(round(3 * depth), 1)
        self.stem = _Focus(base)
        for number, times in ((2, 1), (3, 3), (4, 3), (5, 1)):
            full = base * 2 ** (number - 1)
            pooling = [_Spp(full)] if number == 5 else []
            csp = _Csp(full, full, times * repeats, conv, shortcut=number < 5)
            self.add_module(f"dark{number}", nn.Sequential(conv(full // 2, full, 3, 2), *pooling, csp))

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        x = self.stem(x)
        for number in (2, 3, 4, 5):
            x = self.get_submodule(f"dark{number}")(x)
            features.append(x)
        return features[1:]


class _Neck(nn.Module):
    def __init__(self, depth: float, width: float, conv: type[nn.Module]) -> None:
        super().__init__()
        self.backbone = _Backbone(depth, width, conv)
        small, medium, large = (int(channels * width) for channels in (256, 512, 1024))
        times = round(3 * depth)
        self.lateral_conv0 = _Conv(large, medium, 1)
        self.C3_p4 = _Csp(2 * medium, medium, times, conv)
        self.reduce_conv1 = _Conv(medium, small, 1)
        self.C3_p3 = _Csp(2 * small, small, times, conv)
        self.bu_conv2 = conv(small, small, 3, 2)
        self.C3_n3 = _Csp(2 * small, medium, times, conv)
        self.bu_conv1 = conv(medium, medium, 3, 2)
        self.C3_n4 = _Csp(2 * medium, large, times, conv)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c3, c4, c5 = self.backbone(images)
        p5 = self.lateral_conv0(c5)
        p4 = self.reduce_conv1(self.C3_p4(torch.cat([F.interpolate(p5, scale_factor=2), c4], 1)))
        out3 = self.C3_p3(torch.cat([F.interpolate(p4, scale_factor=2), c3], 1))
        out4 = self.C3_n3(torch.cat([self.bu_conv2(out3), p4], 1))
        return out3, out4, self.C3_n4(torch.cat([self.bu_conv1(out4), p5], 1))


class _Head(nn.Module):
    def __init__(self, num_classes: int, width: float, conv: type[nn.Module]) -> None:
        super().__init__()
        hidden = int(256 * width)
        channels = [int(count * width) for count in (256, 512, 1024)]

        def branches() -> nn.ModuleList:
            return nn.ModuleList(nn.Sequential(conv(hidden, hidden, 3), conv(hidden, hidden, 3)) for _ in channels)

        self.cls_convs, self.reg_convs = branches(), branches()
        self.cls_preds = nn.ModuleList(nn.Conv2d(hidden, num_classes, 1) for _ in channels)
        self.reg_preds = nn.ModuleList(nn.Conv2d(hidden, 4, 1) for _ in channels)
        self.obj_preds = nn.ModuleList(nn.Conv2d(hidden, 1, 1) for _ in channels)
        self.stems = nn.ModuleList(_Conv(count, hidden, 1) for count in channels)

    def forward(self, features: tuple[Tensor, ...]) -> Predictions:
        outputs: list[Tensor] = []
        for level, feature in enumerate(features):
            x = self.stems[level](feature)
            classes, boxes = self.cls_convs[level](x), self.reg_convs[level](x)
            parts = (self.reg_preds[level](boxes), self.obj_preds[level](boxes), self.cls_preds[level](classes))
            outputs.append(torch.cat(parts, 1).flatten(2))
        joined = torch.cat(outputs, 2).permute(0, 2, 1)
        sizes = tuple(Size(*feature.shape[2:]) for feature in features)
        return Predictions(joined[..., :4], joined[..., 4:5], joined[..., 5:], sizes, (8, 16, 32))


class StockDetector(nn.Module):
    """The official network of a configuration.

    Args:
        config: One with the CSPDarknet backbone and SiLU.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        conv = _DepthwiseConv if config.depthwise else _Conv
        self.backbone = _Neck(config.depth, config.width, conv)
        self.head = _Head(config.num_classes, config.width, conv)

    def forward(self, images: Tensor) -> Predictions:
        """Return raw predictions for ``[B, 3, H, W]`` float images."""
        predictions: Predictions = self.head(self.backbone(images))
        return predictions
