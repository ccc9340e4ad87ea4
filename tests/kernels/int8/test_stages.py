"""Threads wait for each other only where a step reads rows that another thread may not have written yet."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from programs import conv, every_kind_of_step, every_kind_of_window, feature, pack, part, random, small_network

from yolox.kernels.int8.executable import Executable
from yolox.kernels.int8.int8_ir import Activation, Feature, Matrix, Program
from yolox.kernels.int8.memory import Memory
from yolox.kernels.int8.ops.elementwise import Add
from yolox.kernels.int8.ops.matrices import Arithmetic, Function, Operation, Unary
from yolox.kernels.int8.stages import blocks_of, owner_of, stages_of


def network() -> Program:
    """A residual block as the detectors have it, and arithmetic behind it."""
    x, y, z, total = (feature(12, 12, 32, seed) for seed in range(4))
    half, wide = feature(6, 6, 32, 5), feature(6, 6, 32, 6)
    scores, sizes = Matrix(36, 8), Matrix(36, 4)
    options = {"activation": Activation.SILU}
    steps = (
        *(pack(x), conv(x, y, 3, depthwise=True, **options), conv(y, z, **options), Add(x, z, total)),
        *(conv(total, half, 3, stride=2, depthwise=True, **options), conv(half, wide, **options)),
        *(conv(wide, scores), Unary(scores, scores, Function.SIGMOID)),
        Arithmetic(scores, Matrix(1, 1, np.full((1, 1), 2.0, np.float32)), sizes, Operation.MULTIPLY, (0, 4)),
    )
    return Program(((32, 12, 12),), steps, (scores, sizes))


def test_steps_of_single_rows_belong_to_the_stage_before() -> None:
    assert stages_of(network().steps) == [0, 1, 1, 1, 2, 2, 2, 3, 3]


def test_a_step_that_needs_other_rows_begins_a_stage() -> None:
    x, y, z, tall = feature(8, 8, 16), feature(8, 8, 16, 1), feature(8, 8, 16, 2), feature(8, 1, 16, 3)
    gate = feature(1, 1, 16, 4)
    padded = conv(y, z, padding=1)
    for needs_more in (conv(y, z, 3), padded, Add(y, gate, z), conv(y, feature(4, 4, 16, 2), stride=2)):
        assert stages_of([pack(x), conv(x, y), needs_more])[1:] == [0, 1], needs_more
    assert stages_of([conv(x, y), conv(tall, Matrix(8, 16)), conv(y, z)]) == [0, 0, 0]


def test_what_the_first_step_reads_widely_is_not_overwritten_in_its_stage() -> None:
    x, y = feature(8, 8, 16), feature(8, 8, 16, 1)
    assert stages_of([conv(x, y, 3), Add(x, y, x)]) == [0, 1]
    whole = feature(8, 8, 32)
    assert stages_of([conv(part(whole, 0, 16), y, 3), conv(y, part(whole, 16, 16))]) == [0, 1]


@pytest.mark.parametrize("make", [network, small_network, every_kind_of_step, every_kind_of_window])
def test_blocks_of_one_stage_never_share_memory(make: Callable[[], Program]) -> None:
    program = make()
    memory = Memory(program)
    for stage in set(memory.stages):
        used = {
            id(owner): owner
            for step, number in zip(program.steps, memory.stages, strict=True)
            if number == stage
            for owner in map(owner_of, blocks_of(step))
            if isinstance(owner, Feature)
        }
        places = sorted((memory.feature(one).at, memory.feature(one).row * one.height) for one in used.values())
        assert all(at + size <= after for (at, size), (after, _) in pairwise(places))


@pytest.mark.usefixtures("variant")
def test_stages_give_what_single_steps_give() -> None:
    program = network()
    inputs = (random(8).random((1, 32, 12, 12)).astype(np.float32) * 4,)
    executable = Executable(program)
    alone = executable.run(inputs, 1, 1)
    for _ in range(20):
        for ours, expected in zip(executable.run(inputs, 1, 3), alone, strict=True):
            np.testing.assert_array_equal(ours, expected)
