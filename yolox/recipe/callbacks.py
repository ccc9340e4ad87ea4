"""What happens around the epochs of a YOLOX run: evaluation, checkpoint files, its end by the clock."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, Checkpoint

from yolox.config import Experiment
from yolox.evaluation.detections_file import write_detections
from yolox.evaluation.loop import EvaluationResult, Share, build_predict, evaluate
from yolox.recipe.module import YoloxModule
from yolox.recipe.schedule import final_phase_epoch

LATEST, BEST = "latest_ckpt.pth", "best_ckpt.pth"
BEST_DETECTIONS = "best_detections.npz"
_log = logging.getLogger(__name__)


class Evaluation(Callback):
    """Evaluates the averaged weights every ``eval_interval`` epochs, in every epoch of the final phase, and at the end.

    After ``patience`` epochs without a better AP the run is asked to stop.

    ``history`` has a row for each evaluation, with the epoch counted from 1; epoch 0 are the weights of the start.

    Args:
        experiment: Gives the interval, the phases and the thresholds.
        before_training: Also evaluate the weights that the run starts from, so that worse ones never replace them.
        folder: Where what the best weights find is written, ``best_detections.npz``; None for nowhere.
    """

    def __init__(self, experiment: Experiment, before_training: bool = False, folder: Path | None = None) -> None:
        self.recipe = experiment.recipe
        self.settings = experiment.eval
        self.before_training = before_training
        self.folder = folder
        self.best_epoch: int | None = None
        self.history: list[dict[str, float]] = []

    def due(self, epoch: int, *, ending: bool = False) -> bool:
        """Whether the 0-based ``epoch`` ends with an evaluation; ``ending`` says that the run ends with it."""
        return (
            ending
            or (epoch + 1) % self.recipe.eval_interval == 0
            or epoch + 1 == self.recipe.max_epoch
            or epoch >= final_phase_epoch(self.recipe) > 0
        )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate the weights of the start, unless the run goes on from a checkpoint."""
        if self.before_training and trainer.global_step == 0 and isinstance(pl_module, YoloxModule):
            self._record(self._evaluate(trainer, pl_module), 0, trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate where it is due and log ``val/AP`` and its kin."""
        epoch = trainer.current_epoch
        if not self.due(epoch, ending=_ending(trainer)) or not isinstance(pl_module, YoloxModule):
            return
        values = self._record(self._evaluate(trainer, pl_module), epoch + 1, trainer)
        pl_module.log_dict(values, sync_dist=trainer.world_size > 1)
        waited = epoch + 1 - (self.best_epoch or 0)
        if self.recipe.patience is not None and waited >= self.recipe.patience and not trainer.should_stop:
            trainer.should_stop = True  # in all processes: their evaluations are the same
            if trainer.is_global_zero:
                _log.warning("stopped after epoch %d: no better AP for %d epochs (patience)", epoch + 1, waited)

    def _record(self, result: EvaluationResult, epoch: int, trainer: pl.Trainer) -> dict[str, float]:
        """Add an evaluation to the history, note whether it is the best one, and return its values."""
        values = {f"val/{key}": float(result.metrics[key]) for key in ("AP", "AP50", "AP75")}
        if values["val/AP"] > max((past["val/AP"] for past in self.history), default=-1.0):
            self.best_epoch = epoch
            if self.folder is not None and trainer.is_global_zero:
                write_detections(self.folder / BEST_DETECTIONS, result.detections, epoch)
        # a run that its time ended inside an epoch evaluates that epoch again, once it is whole
        self.history = [past for past in self.history if past["epoch"] != epoch]
        self.history.append({"epoch": float(epoch), **values})
        if trainer.is_global_zero:
            shown = "  ".join(f"{key} {value:.4f}" for key, value in values.items())
            _log.info("%s: %s", f"epoch {epoch}" if epoch else "before training", shown)
        return values

    def _evaluate(self, trainer: pl.Trainer, module: YoloxModule) -> EvaluationResult:
        loader = trainer.datamodule.evaluation_loader()  # type: ignore[attr-defined]
        return evaluate(
            build_predict(module.deployed_detector),
            loader,
            loader.dataset.ground_truth_json(),
            confidence=self.settings.test_conf,
            nms_iou=self.settings.nmsthre,
            gather=_gather if trainer.world_size > 1 else None,
        )

    def state_dict(self) -> dict[str, object]:
        """Return what a resumed run needs."""
        return {"best_epoch": self.best_epoch, "history": self.history}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Continue from a checkpoint."""
        best = state_dict["best_epoch"]
        self.best_epoch = None if best is None else int(best)  # type: ignore[call-overload]
        self.history = list(state_dict["history"])  # type: ignore[call-overload]


def _gather(share: Share) -> list[Share]:
    shares: list[Share] = [share] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(shares, share)
    return shares


def _evaluation(trainer: pl.Trainer) -> Evaluation | None:
    return next((item for item in trainer.callbacks if isinstance(item, Evaluation)), None)  # type: ignore[attr-defined]


def _ending(trainer: pl.Trainer) -> bool:
    """Whether the run ends before its last epoch does: its steps are done, or something asked it to stop."""
    return trainer.should_stop or 0 < trainer.max_steps <= trainer.global_step


class CheckpointFiles(Checkpoint):
    """Writes ``latest_ckpt.pth`` after epochs, every few minutes and at the end, ``best_ckpt.pth`` at a new best AP.

    Args:
        folder: Where the files lie.
        history: How many ``epoch_N_ckpt.pth`` to keep, one for each evaluation; 0 for none.
        every_minutes: Also write ``latest`` inside an epoch when the last one is older than this.
        every_epochs: After so many epochs it is written in any case.
        every_steps: Likewise after so many steps; None for epochs alone.
    """

    def __init__(
        self,
        folder: Path,
        history: int = 0,
        every_minutes: float = 10.0,
        every_epochs: int = 1,
        every_steps: int | None = None,
    ) -> None:
        self.folder = folder
        self.history = history
        self.every_seconds = 60.0 * every_minutes
        self.every_epochs = every_epochs
        self.every_steps = every_steps
        self._written_at = time.monotonic()
        self._last_step = 0

    @property
    def latest(self) -> Path:
        """The file to resume from."""
        return self.folder / LATEST

    @property
    def best(self) -> Path:
        """The file with the best AP."""
        return self.folder / BEST

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the weights of the start as the best ones so far, where they were evaluated."""
        evaluation = _evaluation(trainer)
        if evaluation is not None and evaluation.best_epoch == 0 and trainer.global_step == 0:
            trainer.save_checkpoint(self.best, weights_only=False)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Write ``latest`` inside a long epoch, and where the run ends inside one: there it can go on."""
        step, before = trainer.global_step, self._last_step
        self._last_step = step
        if step != before and (_ending(trainer) or (self.every_steps and step % self.every_steps == 0)):
            self._write(trainer)
            return
        due = time.monotonic() - self._written_at > self.every_seconds
        if trainer.world_size > 1:
            if trainer.global_step % 10:
                return  # the ranks agree on the time every ten steps only
            due = bool(trainer.strategy.broadcast(due))
        if due:
            self._write(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write ``latest``, and the same as ``best`` and for the history where this epoch was evaluated."""
        evaluation = _evaluation(trainer)
        epoch = trainer.current_epoch + 1
        copies = []
        if evaluation is not None and evaluation.due(epoch - 1, ending=_ending(trainer)):
            copies += [self.best] if evaluation.best_epoch == epoch else []
            copies += [self.folder / f"epoch_{epoch}_ckpt.pth"] if self.history else []
        if not trainer.is_last_batch:
            for copy in copies:  # ``latest`` stays the state inside the epoch, from which the run can go on
                trainer.save_checkpoint(copy, weights_only=False)
        elif copies or epoch % self.every_epochs == 0 or epoch == trainer.max_epochs or _ending(trainer):
            self._write(trainer, copies)
        if self.history and trainer.is_global_zero:
            self._forget_oldest()

    def _write(self, trainer: pl.Trainer, copies: Sequence[Path] = ()) -> None:
        # the copies come first: a ``latest`` that knows of a best AP never stands beside an older ``best``
        options = {"copies": list(copies)} if copies else None
        trainer.save_checkpoint(self.latest, weights_only=False, storage_options=options)
        self._written_at = time.monotonic()

    def _forget_oldest(self) -> None:
        files = sorted(self.folder.glob("epoch_*_ckpt.pth"), key=lambda file: int(file.stem.split("_")[1]))
        for file in files[: -self.history]:
            file.unlink()


class TimeBudget(Callback):
    """Ends the run after the optimizer step during which its time was used up; a resumed run has its own time.

    Lightning's ``max_time`` counts the time before a resumption, so that a run that it ended could not go on.

    Args:
        seconds: From the start of training on.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._started = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ask Lightning to stop; never between the batches that make one step, and in all processes together."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        used_up = time.monotonic() - self._started >= self.seconds
        if trainer.strategy.reduce_boolean_decision(used_up, all=False) and not trainer.should_stop:
            trainer.should_stop = True
            if trainer.is_global_zero:
                _log.warning(
                    "the time of %g s is used up: stopped after step %d; go on with --resume",
                    self.seconds,
                    trainer.global_step,
                )
