"""Random networks of layers that have kernels: a step, one that is recorded, and one that repeats it.

As a script ``random_networks.py FIRST COUNT`` many.

The script is run with kernels that a sanitizer watches, where an access out of bounds ends it. It prints the number of
networks, and that of the layers which had a kernel.
"""

from __future__ import annotations

import random
import sys

import torch
from torch import Tensor, nn

from yolox.kernels.training.acceleration import accelerate, programs, table

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
    """Train a random network on random images and return how many of its layers had kernels.

    Raises:
        AssertionError: Where the steps, taken from one state, do not give the same bits.
    """
    source = random.Random(seed)
    torch.manual_seed(seed)
    module = accelerate(random_network(source).train())
    count = source.randrange(1, 4)
    least = 3 if count > 1 else 8  # a normalisation needs more than one value
    shape = (count, 3, 2 * source.randrange(least, 14), 2 * source.randrange(least, 14))
    images = torch.rand(shape) * 255
    if source.random() < 0.7:
        images = images.contiguous(memory_format=torch.channels_last)
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images.requires_grad_(source.random() < 0.5)
    in_bf16 = source.random() < 0.5
    state = {name: value.clone() for name, value in module.state_dict().items()}
    first, *others = [_step(module, state, images, in_bf16=in_bf16) for _ in range(3)]
    for other in others:
        assert len(other) == len(first)
        assert all(torch.equal(x, y) for x, y in zip(first, other, strict=True)), seed
    assert all(not row.reason for row in programs(module)), programs(module)
    return sum(not row.kernel.endswith("PyTorch") for row in table(module))


def _step(module: nn.Module, state: dict[str, Tensor], images: Tensor, *, in_bf16: bool) -> list[Tensor]:
    """Return the output, all gradients and all statistics of a step that begins with those weights."""
    module.load_state_dict(state)
    module.zero_grad()
    images.grad = None
    with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16):
        output = module(images)
    output.float().square().mean().backward()
    found = [output, images.grad, *(parameter.grad for parameter in module.parameters()), *module.buffers()]
    return [x.detach().clone() for x in found if x is not None]


if __name__ == "__main__":
    torch.set_num_threads(2)
    first, count = int(sys.argv[1]), int(sys.argv[2])
    sys.stdout.write(f"{count} {sum(train_one(seed) for seed in range(first, first + count))}")
