"""The learning rate against figures printed by official YOLOX (batch 64, 1849 steps an epoch)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolox.config import RecipeConfig
from yolox.recipe.schedule import build_schedule, highest_learning_rate

STEPS = 1849
Rate = Callable[[int], float]


@pytest.fixture
def rate() -> Rate:
    recipe = RecipeConfig()
    factor = build_schedule(recipe, 64, STEPS)
    return lambda step: factor(step) * highest_learning_rate(recipe, 64)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (1, 1.17e-10),
        (STEPS, 4.0e-4),
        (3 * STEPS, 3.6e-3),
        (5 * STEPS, 1e-2),
        (145 * STEPS, 5.25e-3),
        (285 * STEPS, 5e-4),
    ],
)
def test_official_figures(rate: Rate, step: int, expected: float) -> None:
    assert rate(step) == pytest.approx(expected, rel=5e-3)


def test_rate_stays_lowest_in_the_final_phase(rate: Rate) -> None:
    assert [rate(step) for step in range(285 * STEPS, 300 * STEPS, 5000)] == pytest.approx([5e-4] * 6)


def test_first_step_of_warmup_runs_at_zero(rate: Rate) -> None:
    assert rate(0) == 0.0


def test_total_batch_sets_the_rate() -> None:
    assert highest_learning_rate(RecipeConfig(), 16) == pytest.approx(highest_learning_rate(RecipeConfig(), 64) / 4)


SCHEDULERS: list[Literal["cos", "warmcos", "yoloxwarmcos"]] = ["cos", "warmcos", "yoloxwarmcos"]


@given(st.sampled_from(SCHEDULERS), st.integers(1, 12), st.integers(0, 14), st.integers(0, 14), st.integers(1, 20))
def test_the_factor_is_a_share_that_rises_to_the_highest_rate_and_falls_from_it(
    scheduler: Literal["cos", "warmcos", "yoloxwarmcos"], max_epoch: int, warmup: int, final: int, steps: int
) -> None:
    recipe = RecipeConfig(scheduler=scheduler, max_epoch=max_epoch, warmup_epochs=warmup, no_aug_epochs=final)
    factor = build_schedule(recipe, 64, steps)
    factors = [factor(step) for step in range(max_epoch * steps + 1)]
    assert all(0.0 <= one <= 1.0 for one in factors)
    end = 0 if scheduler == "cos" else min(warmup * steps, len(factors) - 1)
    assert factors[: end + 1] == sorted(factors[: end + 1])
    assert factors[end:] == sorted(factors[end:], reverse=True)
    if warmup < max_epoch and scheduler != "cos" and warmup > 0:
        assert factors[end] == pytest.approx(1.0)  # the warm-up ends where the rest begins


def test_multistep_drops_at_its_milestones() -> None:
    recipe = replace(RecipeConfig(), scheduler="multistep", milestones=(2, 4))
    factor = build_schedule(recipe, 64, 10)
    assert [factor(step) for step in (0, 19, 20, 39, 40)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])
