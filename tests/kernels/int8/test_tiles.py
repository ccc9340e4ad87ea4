"""Convolutions by Intel's matrix unit, its instructions being computed by a model, are those of the other kernels."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from programs import conv, feature, pack, part, random, small_network
from tile_model import variants, with_tile_model, without_tiles

from yolox.kernels import library
from yolox.kernels.int8 import executable
from yolox.kernels.int8.bindings import Instructions
from yolox.kernels.int8.executable import Executable, instructions, lower
from yolox.kernels.int8.int8_ir import Activation, Feature, Matrix, Program, Step
from yolox.kernels.int8.memory import Memory
from yolox.kernels.int8.ops.conv_step import Conv
from yolox.kernels.int8.packing import tile_depth
from yolox.kernels.library import SWITCH


@pytest.fixture(autouse=True)
def _model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "host_variants", variants)


def tiles_of(program: Program) -> list[int]:
    """Return how many fours of bytes a tile of each convolution holds; 0 where there are none."""
    return [step.tiles for step in lower(program, Memory(program), Instructions.AMX)[0] if step.height]


def run(program: Program, name: str, monkeypatch: pytest.MonkeyPatch, **threads: int) -> tuple[NDArray[Any], ...]:
    monkeypatch.setenv(SWITCH, name)
    inputs = tuple(random(1).integers(0, 256, (3, *size)).astype(np.uint8) for size in program.inputs)
    return Executable(program).run(inputs, **threads)


def same(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare all outputs with and without tiles, in one thread and in two; on processors that have them with both."""
    expected = run(program, without_tiles().name, monkeypatch)
    names = [variant.name for variant in variants() if variant.name.startswith("amx")]
    for name, threads in product(names, ({"team": 1}, {"team": 2}, {"streams": 2})):
        for ours, wanted in zip(run(program, name, monkeypatch, **threads), expected, strict=True):
            assert np.ptp(wanted) > 0, "a constant result proves nothing"
            np.testing.assert_array_equal(ours, wanted)


def source(height: int, width: int, channels: int) -> Feature:
    """A feature that takes bytes as they are."""
    return replace(feature(height, width, channels), scale=np.ones(channels, np.float32))


def quiet(step: Conv) -> Conv:
    """Return a convolution of ``source`` whose results fill the range of the output."""
    return replace(step, multiplier=step.multiplier * np.float32(0.02), offset=0 * step.offset)


def through(x: Feature, *steps: Step, seen: Feature) -> Program:
    """A program that packs its input, runs the steps and returns a feature's bytes."""
    matrix, ones = Matrix(seen.height * seen.width, seen.channels), np.ones(seen.channels, np.float32)
    last = replace(conv(seen, matrix), weight=np.eye(seen.channels, dtype=np.int8)[:, :, None, None])
    last = replace(last, multiplier=ones, offset=0 * ones)
    return Program(((x.channels, x.height, x.width),), (pack(x), *steps, last), (matrix,))


@pytest.mark.parametrize(("height", "width"), [(7, 5), (9, 16), (5, 23), (6, 40)])
@pytest.mark.parametrize(("ins", "outs"), [(64, 64), (32, 16), (128, 33), (40, 96), (72, 20), (130, 5), (12, 48)])
@pytest.mark.parametrize(("size", "stride"), [(1, 1), (3, 1), (3, 2), (1, 2)])
def test_bytes_are_the_same(
    size: int, stride: int, ins: int, outs: int, height: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = source(height, width, ins), feature((height - 1) // stride + 1, (width - 1) // stride + 1, outs, seed=7)
    program = through(x, quiet(conv(x, y, size, stride=stride, activation=Activation.SILU)), seen=y)
    assert tiles_of(program)[0] == tile_depth(-(-ins // 16) * 16 * size)
    same(program, monkeypatch)


@pytest.mark.parametrize("activation", list(Activation))
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("outs", [16, 80])
def test_all_that_may_follow_is_the_same(
    outs: int, dilation: int, activation: Activation, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y, matrix = source(8, 21, 64), feature(8, 21, outs, seed=7), Matrix(168, outs)
    options = {"dilation": dilation, "padding": dilation, "activation": activation, "alpha": 0.5}
    program = through(x, quiet(conv(x, y, 3, **options)), quiet(conv(x, matrix, 3, **options)), seen=y)
    program = replace(program, outputs=(*program.outputs, matrix))
    assert tiles_of(program) == [16, 16, tile_depth(-(-outs // 16) * 16)]
    same(program, monkeypatch)


def test_a_pixel_and_parts_of_pixels_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, z = feature(9, 17, 176, seed=3), feature(9, 17, 96, seed=4)
    x, dot = source(9, 17, 64), feature(1, 1, 64, seed=5)
    ends = (Matrix(153, 96), Matrix(1, 40))
    steps = [quiet(conv(x, part(whole, first, count), 3)) for first, count in ((0, 64), (64, 80), (144, 32))]
    steps += [conv(part(whole, 64, 80), z, 3), conv(z, ends[0]), conv(z, dot, 3, padding=0), conv(dot, ends[1])]
    program = Program(((64, 9, 17),), (pack(x), *steps), ends)
    assert all(tiles_of(program))
    same(program, monkeypatch)


def test_more_weights_than_the_second_cache_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = source(3, 20, 512), feature(3, 20, 300, seed=7)
    same(through(x, quiet(conv(x, y, 3, activation=Activation.SILU)), seen=y), monkeypatch)


def test_a_small_network_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sum(map(bool, tiles_of(small_network()))) == 4
    same(small_network(), monkeypatch)


def test_tiles_of_a_run_are_equal_and_more_than_half_full() -> None:
    depths = {run: tile_depth(run) for run in range(16, 3000, 16)}
    assert [depths[run] for run in (16, 32, 48, 64, 80, 192, 272)] == [0, 8, 12, 16, 10, 16, 0]
    assert all(depth == 0 or (run % (4 * depth) == 0 and 8 <= depth <= 16) for run, depth in depths.items())


@pytest.mark.parametrize("name", ["", "0"])
def test_the_matrix_unit_is_used_only_if_it_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, with_tile_model().name)
    opened = library.required_kernels()
    monkeypatch.setattr(executable, "required_kernels", lambda: opened)
    assert instructions() is Instructions.AMX
    monkeypatch.setenv(SWITCH, name)
    assert instructions() is Instructions.AVX512_VNNI


def test_a_system_that_refuses_the_matrix_unit_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Refused:
        def native_instructions(self) -> int:
            return int(Instructions.AMX)

        def native_may_use_tiles(self) -> int:
            return 0

    monkeypatch.setenv(SWITCH, "amx")
    monkeypatch.setattr(executable, "required_kernels", Refused)
    assert instructions() is Instructions.AVX512_VNNI
    assert "refuses the matrix unit" in caplog.text
