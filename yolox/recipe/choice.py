"""The recipe of a run of a given length: what official YOLOX fixes for 300 epochs of COCO, chosen for any run.

Two things ask for a choice. A short run has no room for 5 epochs of warm-up and 15 of the final phase. And a trained
network has small weights, fitted to the lowest rate of its training: a few steps at the full rate destroy what it
knows, faster than the statistics of its normalisations can follow. The figures: docs/decisions/0028-fine-tuning.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from yolox.config import RecipeConfig

__all__ = ["CHOSEN_FIELDS", "Choice", "RunFacts", "Start", "choose_recipe"]

CHOSEN_FIELDS = (
    "warmup_epochs",
    "no_aug_epochs",
    "scheduler",
    "basic_lr_per_img",
    "bn_momentum",
    "ema_decay",
    "ema_time_constant",
)
"""The fields that `choose_recipe` may change."""

Start = Literal["scratch", "new classes", "known classes"]

_WARMUP_SHARE, _FINAL_SHARE = 0.1, 0.2  # of the run, at most
_TUNING_RATE = 0.1  # of the official rate
_IMAGES_PER_PASS = 256.0  # images that allow one pass over the data at the official rate, see `_rate`
_STEPS_FOR_MOSAIC = 500
_AVERAGED_SHARE = 0.1  # of the run, what the averages of a fine-tuning reach back


@dataclass(frozen=True)
class RunFacts:
    """What the recipe of a run depends on.

    Args:
        num_images: Training images.
        steps_per_epoch: Optimizer steps of an epoch.
        start: ``scratch``; or trained weights, of which ``known classes`` already predict every class of the data, and
            ``new classes`` do not.
    """

    num_images: int
    steps_per_epoch: int
    start: Start


@dataclass(frozen=True)
class Choice:
    """One value of a recipe, and why it is that."""

    field: str
    value: Any
    reason: str

    def __str__(self) -> str:
        """Return the line for a log."""
        value = f"{self.value:.3g}" if isinstance(self.value, float) else str(self.value)
        return f"{self.field} {value}: {self.reason}"


def choose_recipe(
    recipe: RecipeConfig, facts: RunFacts, given: frozenset[str] = frozenset()
) -> tuple[RecipeConfig, tuple[Choice, ...]]:
    """Return the recipe of a run, and what was chosen in it; a pure function.

    Args:
        recipe: The official one, with what the user set.
        facts: What the run is.
        given: Fields that the user set, as ``recipe.max_epoch``; they are never changed.

    Returns:
        The recipe, and a `Choice` for every value that differs from the official one without the user's doing.
    """
    free = {name for name in CHOSEN_FIELDS if f"recipe.{name}" not in given}
    choices: list[Choice] = []
    for choose in (_phases, _rate, _averages) if facts.start != "scratch" else (_phases,):
        for choice in choose(recipe, facts, free):
            if choice.field in free and choice.value != getattr(recipe, choice.field):
                choices.append(choice)
                recipe = replace(recipe, **{choice.field: choice.value})
    return recipe, tuple(choices)


def _phases(recipe: RecipeConfig, facts: RunFacts, free: set[str]) -> list[Choice]:
    """Choose the phases: warm-up, main phase, final phase (no Mosaic, with L1), none of which swallows another."""
    epochs = recipe.max_epoch
    steps = epochs * facts.steps_per_epoch
    scheduler, final = recipe.scheduler, min(recipe.no_aug_epochs, int(_FINAL_SHARE * epochs))
    why = f"at most a fifth of {epochs} epochs without Mosaic"
    choices: list[Choice] = []
    if facts.start != "scratch" and steps < _STEPS_FOR_MOSAIC and {"scheduler", "no_aug_epochs"} <= free:
        scheduler, final = "warmcos", epochs
        why = (
            f"{steps} steps are too few for Mosaic, which normalisations have to learn and to forget; the run goes on "
            "where the training of the weights ended, in its final phase"
        )
        choices.append(Choice("scheduler", scheduler, "the rate falls over the whole run"))
    choices.append(Choice("no_aug_epochs", final, why))
    if "no_aug_epochs" not in free:
        final = min(recipe.no_aug_epochs, epochs)
    room = epochs - final if scheduler == "yoloxwarmcos" else epochs
    warmup = min(recipe.warmup_epochs, _WARMUP_SHARE * epochs, room / 2)
    return [*choices, Choice("warmup_epochs", warmup, f"at most a tenth of {epochs} epochs")]


def _rate(recipe: RecipeConfig, facts: RunFacts, free: set[str]) -> list[Choice]:
    """Choose the rate of a fine-tuning: a tenth of the official one, or less where there is much to lose.

    Weights that know all classes of few images have more to forget than to learn. What they forget grows with rate
    times epochs, and the fewer the images are, the sooner. The statistics of their normalisations would become those
    of the few images alone: that costs an AP of 0.01 without any change of weights.
    """
    factor = _TUNING_RATE
    why = "a tenth of the official rate"
    bearable = facts.num_images / _IMAGES_PER_PASS / recipe.max_epoch
    if facts.start == "known classes" and bearable < factor:
        why = (
            f"{bearable:.2g} of the official rate: the weights know these classes, and {recipe.max_epoch} epochs of "
            f"{facts.num_images} images would make them forget what they know"
        )
        if bearable < factor / 2:
            rate = factor * recipe.basic_lr_per_img
            why += f"; where they do badly on your images, 'basic_lr_per_img {rate:.3g}' learns more"
        factor = bearable
    choices = [Choice("basic_lr_per_img", factor * recipe.basic_lr_per_img, why)]
    if factor < _TUNING_RATE and "basic_lr_per_img" in free:
        share = factor / _TUNING_RATE * recipe.bn_momentum
        choices.append(Choice("bn_momentum", share, "the statistics of normalisations move as slowly as the weights"))
    return choices


def _averages(recipe: RecipeConfig, facts: RunFacts, free: set[str]) -> list[Choice]:
    """Choose the averages of a fine-tuning: from the first step on over a tenth of the run."""
    window = max(1.0, _AVERAGED_SHARE * recipe.max_epoch * facts.steps_per_epoch)
    decay = min(recipe.ema_decay, 1.0 - 1.0 / window)
    return [
        Choice("ema_decay", decay, f"weights are averaged over {min(window, 5000.0):.3g} steps, a tenth of the run"),
        Choice("ema_time_constant", 1.0, "from the first step on, since the weights are good already"),
    ]
