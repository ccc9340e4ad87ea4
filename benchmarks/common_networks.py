"""Networks that everybody knows, in plain torch.nn and with random weights: ResNet-18 and -50, MobileNetV2, U-Net."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def _conv(ins: int, outs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(ins, outs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outs))


class _Bottleneck(nn.Module):
    """ResNet's block (https://arxiv.org/abs/1512.03385), the stride in its 3x3 convolution."""

    def __init__(self, ins: int, width: int, stride: int) -> None:
        super().__init__()
        self.reduce, self.middle = _conv(ins, width, 1), _conv(width, width, 3, stride)
        self.expand = _conv(width, 4 * width, 1)
        self.shortcut = nn.Identity() if ins == 4 * width else _conv(ins, 4 * width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return [batch, 4 * width, height / stride, width / stride]."""
        y = self.expand(self.middle(self.reduce(x).relu()).relu())
        z: Tensor = y + self.shortcut(x)
        return z.relu()


def resnet50() -> nn.Module:
    """Return ResNet-50: 25.6 million weights, 4.1 billion multiply-accumulates for 224 pixels."""
    layers: list[nn.Module] = [_conv(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    ins = 64
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for index in range(blocks):
            layers.append(_Bottleneck(ins, width, stride if index == 0 else 1))
            ins = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(ins, 1000))


class _Basic(nn.Module):
    """ResNet's block of two 3x3 convolutions."""

    def __init__(self, ins: int, outs: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = _conv(ins, outs, 3, stride), _conv(outs, outs, 3)
        self.shortcut = nn.Identity() if ins == outs else _conv(ins, outs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return [batch, outs, height / stride, width / stride]."""
        z: Tensor = self.second(self.first(x).relu()) + self.shortcut(x)
        return z.relu()


def resnet18() -> nn.Module:
    """Return ResNet-18: 11.7 million weights, 1.8 billion multiply-accumulates for 224 pixels."""
    layers: list[nn.Module] = [_conv(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    ins = 64
    for outs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [_Basic(ins, outs, stride), _Basic(outs, outs, 1)]
        ins = outs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(ins, 1000))


class _InvertedResidual(nn.Module):
    """MobileNetV2's block (https://arxiv.org/abs/1801.04381)."""

    def __init__(self, ins: int, outs: int, stride: int, factor: int) -> None:
        super().__init__()
        wide = ins * factor
        expand = (_conv(ins, wide, 1), nn.ReLU6()) if factor > 1 else ()
        depthwise = (_conv(wide, wide, 3, stride, wide), nn.ReLU6())
        self.layers = nn.Sequential(*expand, *depthwise, _conv(wide, outs, 1))
        self.adds = stride == 1 and ins == outs

    def forward(self, x: Tensor) -> Tensor:
        """Return [batch, outs, height / stride, width / stride]."""
        y: Tensor = self.layers(x)
        return x + y if self.adds else y


def mobilenet_v2() -> nn.Module:
    """Return MobileNetV2: 3.5 million weights, 300 million multiply-accumulates for 224 pixels."""
    layers: list[nn.Module] = [_conv(3, 32, 3, 2), nn.ReLU6()]
    ins = 32
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for factor, outs, blocks, stride in stages:
        for index in range(blocks):
            layers.append(_InvertedResidual(ins, outs, stride if index == 0 else 1, factor))
            ins = outs
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(1280, 1000))
    return nn.Sequential(*layers, _conv(ins, 1280, 1), nn.ReLU6(), *head)


def _twice(ins: int, outs: int) -> nn.Sequential:
    return nn.Sequential(_conv(ins, outs, 3), nn.ReLU(), _conv(outs, outs, 3), nn.ReLU())


class UNet(nn.Module):
    """U-Net (https://arxiv.org/abs/1505.04597) with padding and normalisations, 16 to 128 channels, two classes."""

    def __init__(self) -> None:
        super().__init__()
        widths = (16, 32, 64, 128)
        self.down = nn.ModuleList(_twice(ins, outs) for ins, outs in zip((3, *widths), widths, strict=False))
        self.pool = nn.MaxPool2d(2)
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(ins, outs, 2, 2) for ins, outs in pairs)
        self.merge = nn.ModuleList(_twice(2 * outs, outs) for _, outs in pairs)
        self.last = nn.Conv2d(widths[0], 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return [batch, 2, height, width]; height and width multiples of 8."""
        passed = []
        for number, layers in enumerate(self.down):
            x = layers(x if number == 0 else self.pool(x))
            passed.append(x)
        for up, merge, other in zip(self.up, self.merge, passed[-2::-1], strict=True):
            x = merge(torch.cat([other, up(x)], dim=1))
        y: Tensor = self.last(x)
        return y


TRAINED = {"resnet18": resnet18, "mobilenet_v2": mobilenet_v2, "unet": UNet}
NETWORKS = {"resnet50": resnet50, "mobilenet_v2": mobilenet_v2}
