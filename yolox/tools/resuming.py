"""The checkpoint that a training goes on from: found, checked, and compared with what is asked for now."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolox.config import Experiment
from yolox.errors import ModelFileError, UsageError
from yolox.experiments import published_name

if TYPE_CHECKING:
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
