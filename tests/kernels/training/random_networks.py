"""Random networks of layers that have kernels, trained a step; as a script ``random_networks.py FIRST COUNT`` many.

The script is run with kernels that a sanitizer watches, where an access out of bounds ends it. It prints the number of
networks, and that of the layers which had a kernel.
"""

from __future__ import annotations

import random
import sys

import torch
from torch import Tensor, nn

from yolox.kernels.training.acceleration import accelerate, table

CHANNELS = (16, 16, 32, 48, 64, 80, 8, 24, 33, 1)
ACTIVATIONS = (nn.SiLU, nn.ReLU, nn.ReLU6, nn.Identity)


def _conv(source: random.Random, ins: int, outs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Module:
    bias = source.random() < 0.2
    conv = nn.Conv2d(ins, outs, size, stride, size // 2, groups=groups, bias=bias)
    return nn.Sequential(conv, nn.BatchNorm2d(outs), source.choice(ACTIVATIONS)())


class Block(nn.Module):
    """Two branches that are added or lie side by side, and what follows them."""

    def __init__(self, source: random.Random, ins: int) -> None:
        super().__init__()
        self.how = source.choice(("add", "concatenate", "one", "depthwise", "pool", "enlarge"))
        self.outs = source.choice(CHANNELS)
        size = source.choice((1, 1, 3))
        self.left, self.right = _conv(source, ins, self.outs, size), _conv(source, ins, self.outs, 1)
        if self.how == "concatenate":
            self.outs *= 2
        self.last: nn.Module = nn.Identity()
        if self.how == "depthwise":
            self.last = _conv(source, self.outs, self.outs, 3, source.choice((1, 2)), self.outs)
        elif self.how == "pool":
            self.last = nn.MaxPool2d(3, 1, 1)
        elif self.how == "enlarge":
            self.last = nn.Upsample(scale_factor=2)

    def forward(self, x: Tensor) -> Tensor:
        left = self.left(x)
        if self.how == "add":
            left = left + self.right(x)
        elif self.how == "concatenate":
            left = torch.cat([left, self.right(x)], 1)
        return self.last(left)


class Blocks(nn.Module):
    """Each 2x2 block of pixels as one with all their channels, as the first layer of YOLOX has it."""

    def forward(self, x: Tensor) -> Tensor:
        parts = (x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2])
        return torch.cat(parts, 1)


def random_network(source: random.Random) -> nn.Module:
    """Return a stem and one to four blocks."""
    outs = source.choice(CHANNELS)
    layers: list[nn.Module] = [_conv(source, 3, outs, 3, source.choice((1, 2)))]
    if source.random() < 0.5:
        layers = [Blocks(), _conv(source, 12, outs, 3)]
    for _ in range(source.randrange(1, 5)):
        block = Block(source, outs)
        layers.append(block)
        outs = block.outs
    layers.append(nn.Conv2d(outs, source.choice(CHANNELS), 1))
    return nn.Sequential(*layers)


def train_one(seed: int) -> int:
    """Train a random network one step on random images and return how many of its layers had kernels."""
    source = random.Random(seed)
    torch.manual_seed(seed)
    module = accelerate(random_network(source).train())
    shape = (source.randrange(1, 4), 3, 2 * source.randrange(3, 14), 2 * source.randrange(3, 14))
    images = torch.rand(shape) * 255
    if source.random() < 0.7:
        images = images.contiguous(memory_format=torch.channels_last)
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images.requires_grad_(source.random() < 0.5)
    with torch.autocast("cpu", torch.bfloat16, enabled=source.random() < 0.5):
        output = module(images)
    output.float().square().mean().backward()
    return sum(not row.kernel.endswith("PyTorch") for row in table(module))


if __name__ == "__main__":
    torch.set_num_threads(2)
    first, count = int(sys.argv[1]), int(sys.argv[2])
    sys.stdout.write(f"{count} {sum(train_one(seed) for seed in range(first, first + count))}")
