"""Every kind of step computes what the plain interpreter does; bytes differ by one at most, where rounding decides."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from programs import conv, feature, pack, part, random
from reference import interpret

from yolox.kernels.int8.bindings import Instructions
from yolox.kernels.int8.executable import Executable, instructions
from yolox.kernels.int8.int8_ir import Activation, Feature, Matrix, Program, Step
from yolox.kernels.int8.ops.concat import Concatenate
from yolox.kernels.int8.ops.conv_step import Conv
from yolox.kernels.int8.ops.elementwise import Add, Multiply
from yolox.kernels.int8.ops.matrices import Arithmetic, Function, Operation, Unary
from yolox.kernels.int8.ops.pooling import AveragePool, MaxPool
from yolox.kernels.int8.ops.resize import Resize, Upsample
from yolox.kernels.variants import Variant

pytestmark = pytest.mark.usefixtures("variant")


def seen(output: Feature) -> tuple[list[Step], Matrix]:
    """Steps that copy a feature's bytes, exactly, to a matrix."""
    matrix = Matrix(output.height * output.width, output.channels)
    identity = np.eye(output.channels, dtype=np.int8)[:, :, None, None]
    ones = np.ones(output.channels, np.float32)
    return [Conv(output, matrix, identity, ones, 0 * ones)], matrix


def same(steps: list[Step], output: Feature, size: tuple[int, int, int], allowed: int = 1, **run: int) -> None:
    """Run steps that end with a feature both ways."""
    more, matrix = seen(output)
    check(Program((size,), (*steps, *more), (matrix,)), allowed, **run)


def check(program: Program, allowed: float, images: int = 2, streams: int = 1, team: int = 1) -> None:
    inputs = tuple((random(1).random((images, *size)) * 5 - 1.5).astype(np.float32) for size in program.inputs)
    results = Executable(program).run(inputs, streams, team)
    for result, expected in zip(results, interpret(program, inputs), strict=True):
        assert np.ptp(expected) > 0, "a constant result proves nothing"
        np.testing.assert_allclose(result, expected, atol=allowed, rtol=1e-4)
        assert np.mean(np.abs(result - expected) > 0.01 * allowed + 1e-3) < 0.2


@pytest.mark.parametrize("team", [1, 2])
@pytest.mark.parametrize("channels", [1, 3, 16, 20])
@pytest.mark.parametrize("block", [1, 2])
def test_pack(block: int, channels: int, team: int) -> None:
    x = feature(5, 23, channels * block * block)
    same([pack(x, block)], x, (channels, 5 * block, 23 * block), team=team)


def test_pack_takes_bytes_too() -> None:
    x = replace(feature(6, 7, 12), scale=np.full(12, 1.5, np.float32))
    more, matrix = seen(x)
    program = Program(((3, 12, 14),), (pack(x, 2), *more), (matrix,))
    inputs = (random().integers(0, 256, (3, 3, 12, 14)).astype(np.uint8),)
    np.testing.assert_allclose(Executable(program).run(inputs)[0], interpret(program, inputs)[0], atol=1)


@pytest.mark.parametrize("activation", list(Activation))
@pytest.mark.parametrize("depthwise", [False, True])
def test_activations(activation: Activation, depthwise: bool) -> None:
    x, y = feature(9, 11, 32), feature(9, 11, 32, seed=7)
    same([pack(x), conv(x, y, 3, activation=activation, alpha=0.3, depthwise=depthwise)], y, (32, 9, 11))


@pytest.mark.parametrize("activation", list(Activation))
def test_activations_of_a_matrix(activation: Activation) -> None:
    x, y = feature(9, 11, 32), Matrix(99, 20)
    check(Program(((32, 9, 11),), (pack(x), conv(x, y, 3, activation=activation, alpha=0.3)), (y,)), 2e-3)


@pytest.mark.parametrize("team", [1, 2])
@pytest.mark.parametrize("width", [1, 5, 13, 26])
@pytest.mark.parametrize(("ins", "outs"), [(16, 16), (12, 16), (32, 64), (64, 80), (128, 4), (7, 5), (33, 130)])
def test_dense_1x1(ins: int, outs: int, width: int, team: int) -> None:
    x, y = feature(7, width, ins), feature(7, width, outs, seed=7)
    same([pack(x), conv(x, y, activation=Activation.SILU)], y, (ins, 7, width), team=team)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize(("ins", "outs"), [(12, 16), (5, 40), (16, 64)])
def test_dense_of_any_size(ins: int, outs: int, size: int, stride: int) -> None:
    padding = size // 2
    height, width = ((length + 2 * padding - size) // stride + 1 for length in (10, 29))
    x, y = feature(10, 29, ins), feature(height, width, outs, seed=7)
    same([pack(x), conv(x, y, size, stride=stride, activation=Activation.SILU)], y, (ins, 10, 29), team=2)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("channels", [1, 8, 16, 20, 32, 48, 64, 96, 128, 130])
@pytest.mark.parametrize("width", [1, 4, 13, 26])
def test_depthwise(width: int, channels: int, size: int, stride: int) -> None:
    height, columns = ((length - 1) // stride + 1 for length in (9, width))
    x, y = feature(9, width, channels), feature(height, columns, channels, seed=7)
    steps = [pack(x), conv(x, y, size, stride=stride, depthwise=True, activation=Activation.SILU)]
    same(steps, y, (channels, 9, width), team=2)


@pytest.mark.parametrize("sizes", [(16, 16, 32), (64, 64), (64, 80, 16), (5, 11, 3)])
@pytest.mark.parametrize("depthwise", [False, True])
def test_parts_of_a_whole_are_written_and_read_in_their_place(sizes: tuple[int, ...], depthwise: bool) -> None:
    whole, steps, first = feature(8, 13, sum(sizes)), [], 0
    for index, channels in enumerate(sizes):
        x, piece = feature(8, 13, channels), part(whole, first, channels)
        steps += [pack(x, index=index), conv(x, piece, 3, depthwise=depthwise, activation=Activation.SILU)]
        first += channels
    ends = []
    for piece in (whole, part(whole, sizes[0], sizes[1])):
        y = feature(4, 7, piece.channels, seed=7)
        steps += [conv(piece, y, 3, stride=2, depthwise=depthwise)]
        more, matrix = seen(y)
        steps += more
        ends.append(matrix)
    check(Program(tuple((channels, 8, 13) for channels in sizes), tuple(steps), tuple(ends)), 3)  # two in a row


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("weights", [[127], [-128], [-128, -127, 127], [1, 64, 65, 127]])
def test_sums_of_the_largest_weights_and_bytes_are_exact(weights: list[int], size: int) -> None:
    x = replace(feature(6, 7, 16), scale=np.full(16, 1e-3, np.float32))  # the inputs become 0 and 255
    matrix = Matrix(42, 40)
    weight = random(2).choice(weights, (40, 16, size, size)).astype(np.int8)
    ones = np.ones(40, np.float32)
    steps = (pack(x), Conv(x, matrix, weight, ones, 0 * ones, top=size // 2, left=size // 2))
    program = Program(((16, 6, 7),), steps, (matrix,))
    inputs = (random(1).choice([-1, 1], (2, 16, 6, 7)).astype(np.float32),)
    np.testing.assert_array_equal(Executable(program).run(inputs)[0], interpret(program, inputs)[0])


@pytest.mark.parametrize("weight", [127, -128])
def test_depthwise_sums_of_the_largest_weights_and_bytes(weight: int) -> None:
    x, y = replace(feature(6, 7, 40), scale=np.full(40, 1e-3, np.float32)), feature(6, 7, 40, seed=7)
    multiplier = np.full(40, 3 / (9 * 128 * 255), np.float32)
    largest = Conv(
        x, y, np.full((40, 1, 3, 3), weight, np.int8), multiplier, 0 * multiplier + (0 if weight > 0 else 3),
        top=1, left=1, activation=Activation.SILU, depthwise=True,
    )  # fmt: skip
    same([pack(x), largest], y, (40, 6, 7))


@pytest.mark.parametrize("outs", [1, 4, 16, 80])
@pytest.mark.parametrize("activation", [Activation.NONE, Activation.SIGMOID, Activation.SILU])
def test_convolutions_write_levels_and_columns_of_a_matrix(outs: int, activation: Activation) -> None:
    sizes = (13, 6)
    matrix = Matrix(sum(size * size for size in sizes), outs + 3)
    steps: list[Step] = []
    row = 0
    for index, size in enumerate(sizes):
        x = feature(size, size, 64)
        places: dict[str, Any] = {"first_row": row, "activation": activation}
        steps += [pack(x, index=index), conv(x, matrix, outs=outs, first_column=3, **places)]
        steps += [conv(x, matrix, outs=3, **places)]
        row += size * size
    check(Program(tuple((64, size, size) for size in sizes), tuple(steps), (matrix,)), 2e-3, team=2)


@pytest.mark.parametrize("size", [3, 5, 13])
@pytest.mark.parametrize("channels", [3, 64, 128])
def test_pooling_in_a_row_writes_parts_of_a_whole(channels: int, size: int) -> None:
    base = feature(13, 7, channels)
    whole = Feature(13, 7, np.tile(base.scale, 3), np.tile(base.zero, 3))
    parts = [part(whole, index * channels, channels) for index in range(3)]
    window = (size, size, 1, size // 2, size // 2)
    steps = [pack(parts[0]), MaxPool(parts[0], parts[1], *window), MaxPool(parts[1], parts[2], *window)]
    same(steps, whole, (channels, 13, 7), team=2)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_upsample(factor: int) -> None:
    x = feature(4, 5, 24)
    whole = Feature(4 * factor, 5 * factor, np.tile(x.scale, 2), np.tile(x.zero, 2))
    half = part(whole, 24, 24)
    same([pack(x), Upsample(x, half, factor)], half, (24, 4, 5), team=2)


@pytest.mark.parametrize("channels", [3, 16, 64, 100])
def test_add(channels: int) -> None:
    a, b, c = (feature(6, 7, channels, seed=seed) for seed in (1, 2, 3))
    same([pack(a), pack(b, index=0), Add(a, b, c)], c, (channels, 6, 7), team=2)


@pytest.mark.parametrize("step", [Add, Multiply])
@pytest.mark.parametrize("channels", [3, 16, 100])
def test_one_pixel_stands_for_all(channels: int, step: type[Add] | type[Multiply]) -> None:
    a, c = (feature(6, 7, channels, seed=seed) for seed in (1, 3))
    gate = feature(1, 1, channels, seed=2)
    average = AveragePool(a, gate, 6, 7)
    same([pack(a), average, step(a, gate, c)], c, (channels, 6, 7), team=2)


def test_multiply() -> None:
    a, b, c = (feature(6, 7, 40, seed=seed) for seed in (1, 2, 3))
    same([pack(a), pack(b, index=0), Multiply(a, b, c)], c, (40, 6, 7), team=2)


WINDOWS = [(3, 3, 2, 1, 1), (2, 2, 2, 0, 0), (3, 2, 1, 2, 1), (1, 5, 3, 0, 2), (11, 12, 1, 0, 0)]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("channels", [3, 64, 100])
@pytest.mark.parametrize("kind", ["largest", "mean", "mean with padding"])
def test_windows(channels: int, window: tuple[int, int, int, int, int], kind: str) -> None:
    height, width, stride, top, left = window
    sizes = ((11 + top - height) // stride + 1, (12 + left - width) // stride + 1)
    x = feature(11, 12, channels)
    y = Feature(*sizes, x.scale, x.zero) if kind == "largest" else feature(*sizes, channels, seed=4)
    pool = MaxPool(x, y, *window) if kind == "largest" else AveragePool(x, y, *window, "padding" in kind)
    same([pack(x), pool], y, (channels, 11, 12), team=2)


@pytest.mark.parametrize("channels", [3, 40])
def test_resize(channels: int) -> None:
    x = feature(5, 6, channels)
    y = Feature(9, 4, x.scale, x.zero)
    rows, columns = (random(length).integers(0, length, (2, count)) for length, count in ((5, 9), (6, 4)))
    shares = (random(1).random(9).astype(np.float32), random(2).random(4).astype(np.float32))
    resize = Resize(x, y, rows.astype(np.int32), columns.astype(np.int32), *shares)
    same([pack(x), resize], y, (channels, 5, 6), team=2)


@pytest.mark.parametrize("channels", [(12, 16), (7, 40), (16, 64)])
@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((3, 3), {"dilation": 2, "top": 2, "left": 2}),
        ((1, 7), {"left": 3}),
        ((7, 1), {"top": 3, "stride": 2}),
        ((2, 3), {"top": 1, "dilation": 3, "stride": 3}),
        ((2, 1), {"top": -1, "left": -2}),
        ((1, 1), {"top": 1, "left": 1}),
    ],
)
def test_dense_windows_of_any_kind(size: tuple[int, int], options: dict[str, int], channels: tuple[int, int]) -> None:
    x = feature(10, 29, channels[0])
    places = {"top": 0, "left": 0, **options}
    stride, dilation = options.get("stride", 1), options.get("dilation", 1)
    beyond = 2  # windows end on the right and below at another distance than they begin with
    sizes = [
        (length + places[side] + beyond - dilation * (window - 1) - 1) // stride + 1
        for length, side, window in zip((10, 29), ("top", "left"), size, strict=True)
    ]
    y = feature(*sizes, channels[1], seed=7)
    square = conv(x, y, 7, activation=Activation.RELU)
    one = replace(square, weight=square.weight[:, :, : size[0], : size[1]].copy(), **places)
    one = replace(one, multiplier=one.multiplier * np.float32(7 / np.sqrt(size[0] * size[1])), offset=one.offset * 0)
    same([pack(x), one], y, (channels[0], 10, 29), team=2)


@pytest.mark.parametrize("options", [{"dilation": 2}, {"stride": 2}, {}])
@pytest.mark.parametrize("size", [1, 3, 5, 7])
@pytest.mark.parametrize("channels", [3, 16, 40, 100])
@pytest.mark.parametrize("activation", [Activation.NONE, Activation.CLIP, Activation.HARD_SWISH])
def test_depthwise_of_any_kind(activation: Activation, channels: int, size: int, options: dict[str, int]) -> None:
    stride, dilation = options.get("stride", 1), options.get("dilation", 1)
    x, y = feature(9, 13, channels), feature((9 - 1) // stride + 1, (13 - 1) // stride + 1, channels, seed=7)
    if activation is Activation.CLIP:
        y = replace(y, scale=np.full(channels, 2.0 / 255, np.float32), zero=np.zeros(channels, np.uint8))
    padding = size // 2 * dilation
    one = conv(x, y, size, depthwise=True, activation=activation, alpha=2.0, padding=padding, **options)
    same([pack(x), one], y, (channels, 9, 13), team=2)


@pytest.mark.parametrize("activation", [Activation.RELU, Activation.CLIP])
@pytest.mark.parametrize("channels", [20, 64])
def test_bounds_hold_where_rounding_to_bytes_does_not_keep_them(activation: Activation, channels: int) -> None:
    x, y = feature(6, 7, channels), feature(6, 7, channels, seed=7)  # the byte 0 stands for less than zero
    same([pack(x), conv(x, y, 3, activation=activation, alpha=0.5)], y, (channels, 6, 7))


@pytest.mark.parametrize("channels", [5, 16, 40, 64])
@pytest.mark.parametrize("depthwise", [False, True])
def test_every_other_pixel_of_a_whole_is_written(channels: int, depthwise: bool) -> None:
    x, whole = feature(5, 6, channels), feature(10, 12, channels, seed=7)
    steps: list[Step] = [pack(x)]
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        places = Feature(5, 6, whole.scale, whole.zero, whole, 0, 2, row, column)
        steps += [conv(x, places, 2 + column, padding=row + column, depthwise=depthwise)]
    y = feature(10, 12, channels, seed=8)
    same([*steps, conv(whole, y, 3, depthwise=True)], y, (channels, 5, 6), 3, team=2)


def test_matrices() -> None:
    x = feature(5, 5, 6)
    boxes, table = Matrix(25, 6), random(3).random((25, 3)).astype(np.float32) + 0.5
    results = [Matrix(25, columns) for columns in (6, 6, 6, 6, 3)]
    grid, row, single = Matrix(25, 3, table), Matrix(1, 3, table[:1].copy()), Matrix(25, 1, table[:, :1].copy())
    one, joined = Matrix(1, 1, np.full((1, 1), 2.0, np.float32)), Matrix(30, 8)
    steps: list[Step] = [pack(x), conv(x, boxes), Unary(boxes, results[0], Function.SIGMOID)]
    steps += [Unary(boxes, results[1], Function.EXP), Unary(results[1], results[1], Function.SIGMOID)]
    steps += [Arithmetic(boxes, grid, results[2], Operation.ADD, left_columns=(0, 3))]
    steps += [Arithmetic(row, boxes, results[2], Operation.SUBTRACT, None, (3, 6), first_column=3)]
    steps += [
        Arithmetic(boxes, single, results[3], Operation.MULTIPLY),
        Arithmetic(grid, one, results[4], Operation.DIVIDE),
    ]
    steps += [Arithmetic(boxes, results[3], results[3], Operation.ADD)]
    steps += [Unary(boxes, Matrix(25, 6), Function.EXP)]
    steps += [Concatenate(results[2], joined, 5, 2), Concatenate(single, joined, 0, 0)]
    steps += [Concatenate(Matrix(5, 8, np.ones((5, 8), np.float32)), joined, 0, 0)]
    steps += [Concatenate(Matrix(25, 2, np.ones((25, 2), np.float32)), joined, 5, 0)]
    check(Program(((6, 5, 5),), tuple(steps), (*results, joined)), 1e-4, team=2)


def test_each_variant_computes_with_its_own_instructions(variant: Variant) -> None:
    expected = {
        **dict.fromkeys(("amx", "amx-model"), Instructions.AMX),
        **dict.fromkeys(("avx512-bf16", "avx512-vnni"), Instructions.AVX512_VNNI),
        "avx-vnni": Instructions.AVX_VNNI,
        **dict.fromkeys(("avx512", "avx2"), Instructions.AVX2),
        **dict.fromkeys(("neon-i8mm", "neon-dotprod"), Instructions.NEON),
        "portable": Instructions.PORTABLE,
    }
    assert instructions() is expected[variant.name]
