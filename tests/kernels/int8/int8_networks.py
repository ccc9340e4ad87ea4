"""Small networks of common kinds, with random weights whose values stay of one size from layer to layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolox.inference.backends import get_backend
from yolox.inference.backends.base import PrepareContext
from yolox.inference.backends.native import NativeRunner
from yolox.inference.backends.torch_runner import FlatModule
from yolox.inference.methods import get_method


def conv(ins: int, outs: int, size: int = 3, stride: int = 1, groups: int = 1, dilation: int = 1) -> nn.Sequential:
    """A convolution that keeps the size, with BatchNorm."""
    padding = size // 2 * dilation
    layer = nn.Conv2d(ins, outs, size, stride, padding, dilation, groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outs))


class Residual(nn.Module):
    """ResNet's bottleneck; with several groups, ResNeXt's."""

    def __init__(self, ins: int, width: int, stride: int = 1, groups: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.reduce, self.expand = conv(ins, width, 1), conv(width, 4 * width, 1)
        self.middle = conv(width, width, 3, stride, groups=groups, dilation=dilation)
        self.shortcut = conv(ins, 4 * width, 1, stride) if stride > 1 or ins != 4 * width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand(self.middle(self.reduce(x).relu()).relu())
        return (y + self.shortcut(x)).relu()


def residual_network(groups: int = 1, dilation: int = 1) -> nn.Module:
    return nn.Sequential(
        *(conv(3, 16, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)),
        *(Residual(16, 8, 1, groups), Residual(32, 16, 2, groups), Residual(64, 16, 1, groups, dilation)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
    )


class Inverted(nn.Module):
    """MobileNet's inverted residual, with squeeze-and-excitation if ``gate`` is given."""

    def __init__(
        self, ins: int, outs: int, size: int, stride: int, activation: nn.Module, gate: nn.Module | None = None
    ) -> None:
        super().__init__()
        wide = 4 * ins
        self.expand, self.project = conv(ins, wide, 1), conv(wide, outs, 1)
        self.depthwise = conv(wide, wide, size, stride, groups=wide)
        self.squeeze, self.excite = nn.Conv2d(wide, 8, 1), nn.Conv2d(8, wide, 1)
        self.activation, self.gate, self.adds = activation, gate, stride == 1 and ins == outs

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.depthwise(self.activation(self.expand(x))))
        if self.gate is not None:
            y = y * self.gate(self.excite(self.squeeze(F.adaptive_avg_pool2d(y, 1)).relu()))
        y = self.project(y)
        return x + y if self.adds else y


def mobile_network(activation: nn.Module, gate: nn.Module | None = None, size: int = 3) -> nn.Module:
    blocks = (Inverted(16, 16, size, 1, activation, gate), Inverted(16, 24, size, 2, activation, gate))
    last = (conv(24, 40, 1), activation, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2))
    return nn.Sequential(
        conv(3, 16, 3, 2), activation, *blocks, *last, nn.Linear(40, 24), activation, nn.Linear(24, 10)
    )


class Segmentation(nn.Module):
    """U-Net's two ways up: transposed convolutions and interpolation, with what lies beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = conv(3, 16), conv(16, 24), conv(24, 32)
        self.up = nn.ConvTranspose2d(32, 24, 2, 2)
        self.smooth = nn.ConvTranspose2d(24, 16, 4, 2, 1)
        self.merge, self.last = conv(48, 24), nn.Conv2d(16 + 16 + 24, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x).relu()
        second = self.second(F.max_pool2d(first, 2)).relu()
        third = self.third(F.avg_pool2d(second, 3, 2, 1)).relu()
        merged = self.merge(torch.cat((second, self.up(third)), 1)).relu()
        wide = F.interpolate(merged, scale_factor=2, mode="bilinear", align_corners=False)
        return self.last(torch.cat((first, F.leaky_relu(self.smooth(merged)), F.pad(wide, (0, 0, 0, 0))), 1))


class Heads(nn.Module):
    """FCOS's and RetinaNet's heads on two levels: outputs are features, rows and vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = conv(3, 16, 3, 2), conv(16, 32, 3, 2)
        self.side = nn.ModuleList((nn.Conv2d(16, 24, 1), nn.Conv2d(32, 24, 1)))
        self.tower, self.scores = nn.Conv2d(24, 24, 3, 1, 1), nn.Conv2d(24, 6, 3, 1, 1)
        self.boxes, self.scale = nn.Conv2d(24, 4, 3, 1, 1), nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        first = self.stem(x / 255.0 - 0.5).relu()
        second = self.side[1](self.down(first).relu())
        first = self.side[0](first) + F.interpolate(second, size=first.shape[2:], mode="nearest")
        scores, boxes = [], []
        for level in (first, second):
            tower = F.gelu(self.tower(level))
            scores.append(self.scores(tower).permute(0, 2, 3, 1).flatten(1, 2))
            boxes.append((self.boxes(tower) * self.scale).relu())
        return torch.cat(scores, 1).sigmoid(), *boxes, second.mean((2, 3))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet": residual_network,
    "resnext": lambda: residual_network(groups=4),
    "dilated": lambda: residual_network(dilation=2),
    "mobilenet_v2": lambda: mobile_network(nn.ReLU6()),
    "mobilenet_v3": lambda: mobile_network(nn.Hardswish(), nn.Hardsigmoid(), 5),
    "efficientnet": lambda: mobile_network(nn.SiLU(), nn.Sigmoid(), 5),
    "unet": Segmentation,
    "heads": Heads,
}


def build(name: str, images: Tensor) -> nn.Module:
    """Return a network in eval mode, the statistics of whose norms are those of some images."""
    torch.manual_seed(0)
    network = NETWORKS[name]()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean of all batches
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, 0.0, 0.2)
    with torch.no_grad():
        network.train()(images)
    return network.eval()


def images(height: int = 32, width: int = 32, count: int = 8) -> np.ndarray:
    """Smooth pictures, another one each."""
    source = torch.from_numpy(np.random.default_rng(0).random((count, 3, 9, 9)).astype(np.float32))
    smooth = nn.functional.interpolate(source, (height, width), mode="bicubic", align_corners=False)
    return np.asarray(smooth.clamp(0, 1).mul(255).round().numpy())


def prepare(module: nn.Module, folder: Path, sample: np.ndarray) -> NativeRunner:
    folder.mkdir(exist_ok=True)
    context = PrepareContext((sample,), ((sample,),), 2, folder)
    runner = get_backend("native").prepare(FlatModule(module).eval(), get_method("native_int8"), context)
    assert isinstance(runner, NativeRunner)
    return runner


def signal_to_noise(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return how much stronger the outputs are than the difference, in decibels."""
    return float(10 * np.log10(np.var(theirs) / max(float(np.square(ours - theirs).mean()), 1e-12)))
