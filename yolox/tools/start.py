"""What a training starts from: weights with the recipe that fits them, or the checkpoint that it goes on from."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolox.class_names import plain_name
from yolox.config import Experiment
from yolox.errors import ModelFileError, UsageError
from yolox.experiments import published_name
from yolox.tables import shortened

if TYPE_CHECKING:
    from yolox.data.datamodule import YoloxDataModule
    from yolox.recipe.module import YoloxModule

_NEEDED = {
    "state_dict": dict,
    "model": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "loops": dict,
    "callbacks": dict,
    "epoch": int,
    "global_step": int,
    "class_names": list,
}


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


@dataclass(frozen=True)
class RunState:
    """What a checkpoint says of the run that wrote it.

    Args:
        path: The file.
        experiment: Its settings.
        class_names: In the order of the class indices.
        global_step: Optimizer steps done.
        batch_size: Images of a step over all processes; None where the file is of an earlier version.
        steps_per_epoch: Likewise.
    """

    path: Path
    experiment: Experiment
    class_names: tuple[str, ...]
    global_step: int
    batch_size: int | None
    steps_per_epoch: int | None

    def in_its_place(self) -> Experiment:
        """Return the experiment with the folder that the file lies in, where it is the folder of a run by its name.

        What the file itself says of names and folders never decides where files go.
        """
        if re.fullmatch(r"(latest|best|epoch_\d+)_ckpt\.pth", self.path.name):
            folder = self.path.resolve().parent
            return replace(self.experiment, exp_name=folder.name, output_dir=str(folder.parent))
        return replace(self.experiment, exp_name=published_name(self.experiment.model))

    def compare(self, module: YoloxModule) -> None:
        """Say what has changed since the checkpoint, and have ``module`` take new rates where there are any.

        Raises:
            UsageError: When the network or the classes are others.
        """
        from yolox.recipe.resume import changed_fields, check_same_frozen_parts, check_same_network
        from yolox.recipe.schedule import highest_learning_rate

        check_same_network(self.experiment, module.experiment, (self.class_names, module.class_names))
        check_same_frozen_parts(self.experiment.recipe, module.experiment.recipe)
        changes = changed_fields(self.experiment, module.experiment)
        before, after = self.experiment.recipe, module.experiment.recipe
        batch_size, steps = self.batch_size or module.batch_size, self.steps_per_epoch or module.steps_per_epoch
        rate, new_rate = highest_learning_rate(before, batch_size), highest_learning_rate(after, module.batch_size)
        module.new_rates = (rate, before.momentum, before.weight_decay) != (
            new_rate,
            after.momentum,
            after.weight_decay,
        )
        if batch_size != module.batch_size:
            changes.append(f"batch {batch_size} -> {module.batch_size}")
        if rate != new_rate:
            changes.append(f"highest learning rate {rate:.4g} -> {new_rate:.4g}")
        if steps != module.steps_per_epoch:
            changes.append(f"steps of an epoch {steps} -> {module.steps_per_epoch}")
            if module.start_epoch is None:
                changes[-1] += f"; it goes on at the beginning of epoch {self.global_step // steps + 1}"
        print(f"resume: from '{self.path}', step {self.global_step}")
        for change in changes:
            print(f"  changed since: {change}")


def find_checkpoint(args: argparse.Namespace, folder: Path | None) -> Path | None:
    """Return the checkpoint of ``--resume``, or None where the run begins.

    Args:
        args: The tool's options.
        folder: The folder of the run, where the options name one.

    Raises:
        UsageError: When there is no run to go on with.
    """
    from yolox.recipe.callbacks import LATEST

    if not args.resume:
        if args.start_epoch is not None:
            raise UsageError("--start_epoch moves a resumed run; give it together with --resume.")
        return None
    if args.ckpt is not None:
        return Path(args.ckpt)
    if folder is None:
        return None
    if (folder / LATEST).is_file():
        return folder / LATEST
    if not folder.is_dir():
        raise UsageError(f"--resume: there is no run in '{folder}'. Check -expn and --output_dir, or leave it out.")
    print(f"--resume: '{folder}' holds no checkpoint yet; the run starts from its beginning")
    return None


def read_run_state(path: Path) -> RunState:
    """Return what the checkpoint ``path`` says of its run.

    Raises:
        ModelFileError: When it cannot be read, or holds no state of a training run, or weights that are not finite.
    """
    from yolox.checkpoint import check_weights, class_names_of, own_experiment, read_checkpoint

    content = read_checkpoint(path, own_run=True)
    experiment = own_experiment(content, path)
    if experiment is None or "loops" not in content:
        raise ModelFileError(
            f"'{path}' holds weights but no state of a training run. Leave --resume out to start from them."
        )
    for key, kind in _NEEDED.items():
        if not isinstance(content.get(key), kind):
            raise ModelFileError(
                f"'{path}' holds {type(content.get(key)).__name__} under '{key}', a training run needs "
                f"{kind.__name__}. It is damaged; go on from another checkpoint."
            )
    for weights in (content["state_dict"], content["model"]):
        check_weights(weights, path)
    return RunState(
        path,
        experiment,
        class_names_of(content, len(content["class_names"]), path),
        content["global_step"],
        _positive(content, "batch_size"),
        _positive(content, "steps_per_epoch"),
    )


def _positive(content: Mapping[str, Any], key: str) -> int | None:
    value = content.get(key)
    return value if isinstance(value, int) and value > 0 else None
