"""Two networks that everybody knows, in plain torch.nn: the shapes of ResNet-50 and MobileNetV2, random weights."""

from __future__ import annotations

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


NETWORKS = {"resnet50": resnet50, "mobilenet_v2": mobilenet_v2}
