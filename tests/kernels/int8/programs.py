"""Steps and small programs with random weights, for tests."""

from __future__ import annotations

from typing import Any

import numpy as np

from yolox.kernels.int8.int8_ir import Activation, Feature, Matrix, Program, Step
from yolox.kernels.int8.ops.concat import Concatenate
from yolox.kernels.int8.ops.conv_step import Conv
from yolox.kernels.int8.ops.elementwise import Add, Multiply
from yolox.kernels.int8.ops.matrices import Arithmetic, Function, Operation, Unary
from yolox.kernels.int8.ops.pixels import Pack
from yolox.kernels.int8.ops.pooling import AveragePool, MaxPool
from yolox.kernels.int8.ops.resize import Resize, Upsample


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def feature(height: int, width: int, channels: int, seed: int = 0, spread: float = 0.5) -> Feature:
    """A feature each of whose channels has a scale and a zero of its own."""
    source = random(seed)
    scale = 0.02 * (1 + spread * source.random(channels))
    return Feature(height, width, scale.astype(np.float32), source.integers(0, 90, channels).astype(np.uint8))


def part(whole: Feature, first: int, channels: int) -> Feature:
    return whole.part(first, channels)


def pack(output: Feature, block: int = 1, index: int = 0) -> Pack:
    order = random(5).permutation(output.channels) if block > 1 else range(output.channels)
    return Pack(index, output, block, tuple(int(one) for one in order))


def conv(source: Feature, target: Feature | Matrix, size: int = 1, outs: int | None = None, **options: Any) -> Conv:
    """A convolution of random weights whose results fill the range of the output."""
    outs = target.channels if isinstance(target, Feature) else outs or target.columns
    shape = (outs, 1 if options.get("depthwise") else source.channels, size, size)
    weight = random(2).integers(-127, 128, shape).astype(np.int8)
    inputs = weight[0].size
    multiplier = (1 + random(3).random(outs)) * 2.0 / (inputs**0.5 * 73 * 73)
    offset = random(4).normal(0, 1, outs) - multiplier * weight.reshape(outs, -1).sum(1) * 100.0
    padding = options.pop("padding", size // 2)
    numbers = (weight, multiplier.astype(np.float32), offset.astype(np.float32))
    return Conv(source, target, *numbers, top=padding, left=padding, **options)


def small_network() -> Program:
    x, y, z = feature(10, 10, 12), feature(10, 10, 32, 1), feature(5, 5, 32, 2)
    whole = feature(5, 5, 80, 3)
    steps: list[Step] = [pack(x, 2), conv(x, y, 3, activation=Activation.SILU)]
    steps += [conv(y, z, 3, stride=2, depthwise=True, activation=Activation.SILU)]
    steps += [conv(z, part(whole, 0, 48), activation=Activation.SILU), conv(z, part(whole, 48, 32))]
    scores = Matrix(25, 20)
    return Program(((3, 20, 20),), (*steps, conv(whole, scores, 3, activation=Activation.SIGMOID)), (scores,))


def every_kind_of_step() -> Program:
    x, y, up = feature(10, 10, 12), feature(5, 5, 16, 1), feature(10, 10, 16, 1)
    whole = feature(10, 10, 64, 3)
    up = part(whole, 0, 16)
    y = Feature(5, 5, up.scale, up.zero)
    pooled = Feature(5, 5, up.scale, up.zero)
    left, total = part(whole, 16, 24), part(whole, 40, 24)
    boxes, sizes, stacked = Matrix(100, 4), Matrix(100, 2), Matrix(100, 6)
    strides = Matrix(100, 1, np.full((100, 1), 8.0, np.float32))
    steps: list[Step] = [
        *(
            pack(x, 2),
            conv(x, y, 3, stride=2, activation=Activation.SILU),
            MaxPool(y, pooled, 3, 3, 1, 1, 1),
            Upsample(pooled, up, 2),
        ),
        *(conv(x, left, 1, activation=Activation.RELU), Add(left, left, total)),
        *(conv(whole, boxes, 1, first_column=0), Unary(boxes, boxes, Function.SIGMOID)),
        *(Arithmetic(boxes, strides, sizes, Operation.MULTIPLY, (2, 4)), Concatenate(boxes, stacked)),
        Concatenate(sizes, stacked, 0, 4),
    ]
    return Program(((3, 20, 20),), tuple(steps), (stacked, boxes))


def every_kind_of_window() -> Program:
    """Steps that other networks than YOLOX consist of."""
    x, y, whole = feature(20, 20, 3), feature(10, 10, 24, 1), feature(10, 10, 20, 2)
    small, gate = Feature(5, 5, y.scale, y.zero), feature(1, 1, 24, 4)
    large, product = Feature(7, 12, whole.scale, whole.zero), feature(5, 5, 24, 5)
    rows, columns = (random(count).integers(0, 10, (2, count)).astype(np.int32) for count in (7, 12))
    shares = (random(1).random(7).astype(np.float32), random(2).random(12).astype(np.float32))
    steps: list[Step] = [pack(x), conv(x, y, 7, stride=2, activation=Activation.RELU)]
    steps += [MaxPool(y, small, 3, 3, 2, 1, 1), AveragePool(small, gate, 5, 5), Multiply(small, gate, product)]
    steps += [Add(product, gate, product), AveragePool(y, small, 2, 3, 2, 0, 1, True)]
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        places = Feature(5, 5, whole.scale, whole.zero, whole, 0, 2, row, column)
        steps += [conv(product.part(4, 16), places, 1 + column, padding=column, activation=Activation.HARD_SWISH)]
    dilated = feature(10, 10, 20, 6)
    steps += [conv(whole, dilated, 3, depthwise=True, dilation=2, padding=2, activation=Activation.CLIP, alpha=1.5)]
    steps += [Resize(whole, large, rows, columns, *shares)]
    ends = (Matrix(84, 20), Matrix(1, 5), Matrix(100, 20))
    steps += [conv(large, ends[0], depthwise=True), conv(gate, ends[1]), conv(dilated, ends[2], depthwise=True)]
    return Program(((3, 20, 20),), tuple(steps), ends, ((20, 7, 12), (5,), (100, 20)))
