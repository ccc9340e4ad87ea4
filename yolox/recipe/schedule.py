"""Learning-rate schedules of YOLOX, as factors of the highest rate (official ``yolox/utils/lr_scheduler.py``)."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable

from yolox.config import RecipeConfig


def highest_learning_rate(recipe: RecipeConfig, batch_size: int) -> float:
    """Return the rate after warm-up: that of an image times the images of a step.

    Args:
        recipe: Gives the rate of an image, and how many batches make one step.
        batch_size: Images of a batch over all processes.
    """
    return recipe.basic_lr_per_img * batch_size * recipe.accumulate


def steps_of_epoch(num_batches: int, recipe: RecipeConfig) -> int:
    """Return the optimizer's steps in an epoch of ``num_batches`` batches; the last step may have fewer of them."""
    return -(-num_batches // recipe.accumulate)


def build_schedule(recipe: RecipeConfig, batch_size: int, steps_per_epoch: int) -> Callable[[int], float]:
    """Return the function that maps the number of finished steps to a factor of the highest rate.

    The next step runs at that rate; hence the first step of a warm-up from zero changes nothing, as in official YOLOX.
    """
    total = recipe.max_epoch * steps_per_epoch
    warmup = recipe.warmup_epochs * steps_per_epoch
    final = min(recipe.no_aug_epochs, recipe.max_epoch) * steps_per_epoch
    start = recipe.warmup_lr / highest_learning_rate(recipe, batch_size)

    def cosine(step: int, begin: float, end: int, lowest: float) -> float:
        share = min(max(step - begin, 0) / max(end - begin, 1), 1.0)
        return lowest + 0.5 * (1.0 - lowest) * (1.0 + math.cos(math.pi * share))

    def yoloxwarmcos(step: int) -> float:
        if step <= warmup and warmup > 0:
            return start + (1.0 - start) * (step / warmup) ** 2
        if step >= total - final:
            return recipe.min_lr_ratio
        return cosine(step, warmup, total - final, recipe.min_lr_ratio)

    def warmcos(step: int) -> float:
        if step <= warmup and warmup > 0:
            return start + (1.0 - start) * step / warmup
        return cosine(step, warmup, total, 0.0)

    def multistep(step: int) -> float:
        passed = bisect_right([epoch * steps_per_epoch for epoch in recipe.milestones], step)
        return float(recipe.gamma**passed)

    schedules: dict[str, Callable[[int], float]] = {
        "yoloxwarmcos": yoloxwarmcos,
        "warmcos": warmcos,
        "cos": lambda step: cosine(step, 0, total, 0.0),
        "multistep": multistep,
    }
    return schedules[recipe.scheduler]
