"""What a resumed run takes over from its checkpoint, and what follows from settings that have changed since."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from yolox.config import SECTIONS, Experiment, RecipeConfig
from yolox.errors import UsageError
from yolox.tables import shortened

_PER_MACHINE = {"data.data_num_workers", "data.cache", "recipe.print_interval"}  # they change no result


def check_same_network(before: Experiment, after: Experiment, names: tuple[Sequence[str], Sequence[str]]) -> None:
    """Refuse to go on with another network or with other classes.

    Args:
        before: The experiment in the checkpoint.
        after: The experiment of the resumed run.
        names: The class names of both, in their order.

    Raises:
        UsageError: Naming what differs.
    """
    theirs, ours = names
    if list(theirs) != list(ours):
        what = "the same class names in another order" if sorted(theirs) == sorted(ours) else "other classes"
        raise UsageError(
            f"--resume: the data set has {what}: {_few(ours)} instead of {_few(theirs)}. Give the data set of the "
            "run, or start a new run from its weights: -c without --resume."
        )
    model = replace(after.model, num_classes=before.model.num_classes)
    if model != before.model:
        differing = "; ".join(_differences("model", before.model, model))
        raise UsageError(
            f"--resume: the run has another network ({differing}). Leave these settings out, or start a new run."
        )


def check_same_frozen_parts(before: RecipeConfig, after: RecipeConfig) -> None:
    """Refuse to go on with other frozen parts: the optimizer's state is that of the trained ones.

    Raises:
        UsageError: Naming both.
    """
    if before.freeze != after.freeze:
        old, new = (", ".join(recipe.freeze) or "nothing" for recipe in (before, after))
        raise UsageError(
            f"--resume: the run has frozen {old}, and {new} is asked for. Leave it out, or start a new run from its "
            "weights: -c without --resume."
        )


def changed_fields(before: Experiment, after: Experiment) -> list[str]:
    """Return ``section.field old -> new`` for every setting that changes what a resumed run computes."""
    changes = [f"seed {before.seed} -> {after.seed}"] if before.seed != after.seed else []
    for section in SECTIONS:
        changes += _differences(section, getattr(before, section), getattr(after, section))
    return [change for change in changes if change.split(" ", 1)[0] not in _PER_MACHINE]


def _differences(section: str, before: Any, after: Any) -> list[str]:
    pairs = ((item.name, getattr(before, item.name), getattr(after, item.name)) for item in fields(before))
    return [f"{section}.{name} {old} -> {new}" for name, old, new in pairs if old != new]


def _few(names: Sequence[str]) -> str:
    return f"{len(names)} ({shortened(names, 5)})"


def resumed_epoch(checkpoint: Mapping[str, Any], steps_per_epoch: int) -> int | None:
    """Return the 0-based epoch to go on with from its beginning, or None where the place in the checkpoint still holds.

    With another number of steps in an epoch the place in the stream of images is another one; the run then goes on at
    the beginning of the epoch in which it stood.
    """
    before = checkpoint.get("steps_per_epoch", steps_per_epoch)
    return None if before == steps_per_epoch else int(checkpoint["global_step"]) // max(1, int(before))


def move_to_epoch_(checkpoint: dict[str, Any], epoch: int, steps_per_epoch: int) -> None:
    """Rewrite the counters of a loaded checkpoint so that ``epoch`` (0-based) comes next; the trainer follows them."""
    checkpoint["epoch"], checkpoint["global_step"] = epoch, epoch * steps_per_epoch


def set_rates_(checkpoint: dict[str, Any], optimizer: Optimizer, factor: Callable[[int], float]) -> None:
    """Give the stored optimizer and schedule the rates, momentum and weight decay of a fresh ``optimizer``.

    Args:
        checkpoint: Loaded; its optimizer has the groups of ``optimizer``, its ``global_step`` is the number of steps
            done.
        optimizer: Built with the settings of the resumed run.
        factor: Share of the highest rate at each step.
    """
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    # the constructor makes a step, so that the schedule stands at the step that comes next
    schedule = LambdaLR(optimizer, factor, last_epoch=int(checkpoint["global_step"]) - 1)
    checkpoint["lr_schedulers"] = [schedule.state_dict()]
    stored = checkpoint["optimizer_states"][0]["param_groups"]
    for theirs, ours in zip(stored, optimizer.param_groups, strict=True):
        theirs.update({key: ours[key] for key in ("momentum", "weight_decay", "initial_lr", "lr")})
