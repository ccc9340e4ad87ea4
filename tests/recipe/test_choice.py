"""The recipe of a run follows its length and what it starts from; what the user set stays."""

from __future__ import annotations

from dataclasses import replace

import pytest

from yolox.config import RecipeConfig, apply_fields
from yolox.experiments import EXPERIMENTS
from yolox.recipe.choice import RunFacts, Start, choose_recipe
from yolox.recipe.schedule import build_schedule

OFFICIAL = RecipeConfig()


def chosen(epochs: int, images: int, steps: int, start: Start, *given: str) -> RecipeConfig:
    return choose_recipe(replace(OFFICIAL, max_epoch=epochs), RunFacts(images, steps, start), frozenset(given))[0]


@pytest.mark.parametrize("epochs", [75, 300])
def test_a_long_training_from_scratch_is_the_official_one(epochs: int) -> None:
    recipe, choices = choose_recipe(replace(OFFICIAL, max_epoch=epochs), RunFacts(118287, 1849, "scratch"))
    assert recipe == replace(OFFICIAL, max_epoch=epochs)
    assert choices == ()


@pytest.mark.parametrize("start", ["scratch", "new classes", "known classes"])
@pytest.mark.parametrize("epochs", [1, 2, 3, 6, 20, 60, 300])
@pytest.mark.parametrize("steps", [1, 2, 40])
def test_no_phase_swallows_another(epochs: int, steps: int, start: Start) -> None:
    recipe = chosen(epochs, 64 * steps, steps, start)
    assert recipe.warmup_epochs <= 0.1 * epochs
    if recipe.scheduler == "yoloxwarmcos":
        assert recipe.warmup_epochs + recipe.no_aug_epochs < epochs
    factor = build_schedule(recipe, 64, steps)
    rates = [factor(step) for step in range(epochs * steps)]
    assert max(rates) > 0.5 or len(rates) == 1, "some step comes near the highest rate"
    assert all(0 <= rate <= 1 for rate in rates)


def test_new_classes_are_learnt_at_a_tenth_of_the_rate() -> None:
    for images, epochs in ((40, 6), (40, 300), (118287, 300)):
        recipe = chosen(epochs, images, -(-images // 64), "new classes")
        assert recipe.basic_lr_per_img == pytest.approx(0.1 * OFFICIAL.basic_lr_per_img)


@pytest.mark.parametrize(
    ("images", "epochs", "share"), [(40, 6, 40 / 256 / 6), (40, 60, 40 / 256 / 60), (128, 6, 0.5 / 6), (9000, 60, 0.1)]
)
def test_known_classes_of_few_images_move_less(images: int, epochs: int, share: float) -> None:
    recipe = chosen(epochs, images, -(-images // 64), "known classes")
    assert recipe.basic_lr_per_img == pytest.approx(share * OFFICIAL.basic_lr_per_img)


@pytest.mark.parametrize(("images", "told"), [(51, False), (20, True)])
def test_a_rate_that_learns_more_is_told_where_it_is_another(images: int, told: bool) -> None:
    _, choices = choose_recipe(replace(OFFICIAL, max_epoch=2), RunFacts(images, 1, "known classes"))
    (choice,) = (choice for choice in choices if choice.field == "basic_lr_per_img")
    assert ("'basic_lr_per_img 1.56e-05' learns more" in choice.reason) is told
    assert (f"{choice.value:.3g}" != "1.56e-05") is told


def test_mosaic_needs_many_steps() -> None:
    short, long = chosen(60, 128, 2, "known classes"), chosen(60, 9000, 141, "known classes")
    assert (short.no_aug_epochs, short.scheduler) == (60, "warmcos")
    assert (long.no_aug_epochs, long.scheduler) == (12, "yoloxwarmcos")


def test_averages_reach_over_a_tenth_of_the_run() -> None:
    recipe = chosen(60, 128, 2, "new classes")
    assert 1 / (1 - recipe.ema_decay) == pytest.approx(12)
    assert chosen(300, 118287, 1849, "new classes").ema_decay == OFFICIAL.ema_decay


def test_what_the_user_set_stays() -> None:
    words = {"max_epoch": 6, "basic_lr_per_img": 0.01 / 64, "no_aug_epochs": 2, "warmup_epochs": 5, "ema_decay": 0.9998}
    experiment = apply_fields(EXPERIMENTS["yolox_nano"], words)
    recipe, choices = choose_recipe(experiment.recipe, RunFacts(40, 1, "known classes"), experiment.given)
    assert all(getattr(recipe, name) == value for name, value in words.items())
    assert {choice.field for choice in choices} == {"ema_time_constant"}
