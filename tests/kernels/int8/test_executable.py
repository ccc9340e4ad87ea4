"""A program of the int8 kernels runs for any number of images, streams and threads; what does not fit is refused."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from programs import feature, part, random, small_network
from reference import interpret

from yolox.errors import ModelFileError, UsageError
from yolox.kernels.int8.bindings import CActivationTable, CBatch, CStep
from yolox.kernels.int8.executable import Executable
from yolox.kernels.int8.int8_ir import Matrix
from yolox.kernels.library import required_kernels

pytestmark = pytest.mark.usefixtures("variant")


@pytest.mark.parametrize(("images", "streams", "team"), [(1, 1, 2), (1, 2, 1), (5, 2, 1), (3, 2, 2), (2, 4, 1)])
def test_any_number_of_images_streams_and_threads(images: int, streams: int, team: int) -> None:
    program = small_network()
    inputs = (random(8).random((images, 3, 20, 20)).astype(np.float32) * 4,)
    executable = Executable(program)
    first = executable.run(inputs, 1, 1)[0]
    np.testing.assert_array_equal(executable.run(inputs, streams, team)[0], first)
    np.testing.assert_allclose(first, interpret(program, inputs)[0], atol=0.05)


def test_outputs_may_be_equal_or_constant() -> None:
    program = small_network()
    numbers = np.arange(24, dtype=np.float32).reshape(4, 6)[:, ::2]
    constant = Matrix(4, 3, numbers)
    more = replace(program, outputs=(program.outputs[0], constant, program.outputs[0]))
    first, fixed, again = Executable(more).run((np.ones((2, 3, 20, 20), np.float32),))
    np.testing.assert_array_equal(first, again)
    assert np.ptp(first) > 0
    np.testing.assert_array_equal(fixed, np.stack([numbers] * 2))


def test_no_images_give_empty_outputs() -> None:
    assert Executable(small_network()).run((np.empty((0, 3, 20, 20), np.float32),))[0].shape == (0, 25, 20)


def test_other_shapes_and_types_are_refused() -> None:
    executable = Executable(small_network())
    with pytest.raises(UsageError, match=r"\(1, 3, 8, 8\).*3, 20, 20"):
        executable.run((np.zeros((1, 3, 8, 8), np.float32),))
    with pytest.raises(UsageError, match=r"float64.*float32 or uint8"):
        executable.run((np.zeros((1, 3, 20, 20), np.float64),))


@pytest.mark.parametrize(
    ("number", "change"),
    [
        (0, {"input": 1}),
        (0, {"order": (0,) * 12}),
        (1, {"top": -10}),
        (1, {"dilation": 0}),
        (1, {"stride": 129}),
        (1, {"activation": 3}),
        (1, {"alpha": float("nan")}),
        (1, {"weight": np.zeros((32, 12, 3, 0), np.int8)}),
        (1, {"weight": np.zeros((32, 12, 129, 1), np.int8)}),
        (2, {"weight": np.zeros((32, 2, 3, 3), np.int8)}),
        (3, {"output": feature(5, 5, 47)}),
        (4, {"output": part(feature(5, 5, 80), 64, 32)}),
        (5, {"first_row": 1}),
        (5, {"output": Matrix(25, 20, np.zeros((25, 20), np.float32))}),
    ],
)
def test_steps_that_do_not_fit_are_refused(number: int, change: dict[str, Any]) -> None:
    program = small_network()
    steps = [replace(step, **change) if index == number else step for index, step in enumerate(program.steps)]
    with pytest.raises(ModelFileError, match=rf"step {number} .*make it again"):
        Executable(replace(program, steps=tuple(steps)))


def test_structures_are_as_large_as_the_kernels_ones() -> None:
    sizes = [ctypes.c_long() for _ in range(3)]
    required_kernels().native_bytes(*(ctypes.byref(size) for size in sizes))
    assert [size.value for size in sizes] == [ctypes.sizeof(kind) for kind in (CStep, CActivationTable, CBatch)]


def test_each_step_says_what_it_is_and_how_long_it_took() -> None:
    program = small_network()
    steps = Executable(program).step_seconds((np.ones((2, 3, 20, 20), np.float32),), 1, 1)
    kinds = [name.split()[0] for name, _ in steps]
    assert kinds == ["pack", "dense", "depthwise", "dense", "dense", "dense"]
    assert all(seconds > 0 for _, seconds in steps)
