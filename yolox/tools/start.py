"""What a training starts from: weights whose classes are matched by name, and the recipe that fits both."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from yolox.class_names import plain_name
from yolox.config import Experiment
from yolox.tables import shortened

if TYPE_CHECKING:
    from yolox.data.datamodule import YoloxDataModule
    from yolox.recipe.module import YoloxModule


class StartWeights:
    """The weights of a checkpoint to fine-tune.

    Args:
        path: A checkpoint of this package, an official one, or plain weights.

    Raises:
        ModelFileError: When it cannot be read or holds no YOLOX weights.
    """

    def __init__(self, path: str) -> None:
        from yolox.checkpoint import class_names_of, num_classes_of, read_checkpoint, weights_of

        self.path = path
        content = read_checkpoint(path)
        self.weights = weights_of(content, path)
        self.class_names = class_names_of(content, num_classes_of(self.weights), path)

    def load_into_(self, module: YoloxModule) -> None:
        """Copy what fits into the module's network and averages, and say what did not.

        Raises:
            ModelFileError: When nothing fits.
        """
        from yolox.checkpoint import load_weights_
        from yolox.recipe.class_rows import carry_classes

        names = module.class_names
        weights, carried = carry_classes(module.detector, self.weights, self.class_names, names)
        print(f"start weights: {self.path}: {load_weights_(module.detector, weights)}")
        new = [name for name in names if name not in carried]
        shown = f" ({shortened(carried, 6)})" if carried else ""
        fresh = f"; new: {shortened(new, 6)}" if new else ""
        print(f"classes known to the weights: {len(carried)} of {len(names)}{shown}{fresh}")
        if module.ema is not None:
            module.ema.load_(module.detector.state_dict(), updates=0)

    def knows(self, class_names: tuple[str, ...]) -> bool:
        """Return whether the weights predict all of these classes."""
        return {plain_name(name) for name in class_names} <= {plain_name(name) for name in self.class_names}


def keep_choices(experiment: Experiment, before: Experiment) -> Experiment:
    """Return the experiment of a resumed run with what was chosen for it when it began."""
    from yolox.recipe.choice import CHOSEN_FIELDS

    free = [name for name in CHOSEN_FIELDS if f"recipe.{name}" not in experiment.given]
    return replace(experiment, recipe=replace(experiment.recipe, **{n: getattr(before.recipe, n) for n in free}))


def fit_recipe(experiment: Experiment, data: YoloxDataModule, start: StartWeights | None) -> Experiment:
    """Return the experiment with the recipe that fits the run, and print every choice.

    Args:
        experiment: What the user asked for.
        data: The data of the run.
        start: The weights to fine-tune; None from scratch.
    """
    from yolox.recipe.choice import RunFacts, Start, choose_recipe
    from yolox.recipe.schedule import steps_of_epoch

    kind: Start = "scratch" if start is None else "known classes" if start.knows(data.class_names) else "new classes"
    steps = steps_of_epoch(data.batches_per_epoch, experiment.recipe)
    facts = RunFacts(len(data.train_set), steps, kind)
    recipe, choices = choose_recipe(experiment.recipe, facts, experiment.given)
    if choices:
        what = "a training from scratch" if start is None else f"a fine-tuning of {kind}"
        print(f"recipe for {what}, {recipe.max_epoch} epochs of {steps} steps:")
    for choice in choices:
        print(f"  {choice}")
    return replace(experiment, recipe=recipe)
