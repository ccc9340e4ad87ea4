"""``report.html`` of a run: what happened, how good the best weights are, what the network saw."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from yolox.data.coco_dataset import CocoDataset
from yolox.evaluation.coco_metric import coco_metric
from yolox.evaluation.detections_file import read_detections
from yolox.evaluation.loop import EvaluationResult, Times, only_images
from yolox.recipe.callbacks import BEST_DETECTIONS, Evaluation
from yolox.recipe.epoch_log import EpochLog
from yolox.recipe.module import YoloxModule
from yolox.report.document import Judged, Report, write_report
from yolox.structures import Batch, Targets
from yolox.tables import shortened

REPORT = "report.html"
_NUM_IMAGES = 8  # of a training batch
_log = logging.getLogger(__name__)


class HtmlReport(Callback):
    """Writes ``report.html`` after training, in rank 0. What goes wrong with it is logged and stops nothing.

    Args:
        folder: The folder of the run, with the files that other callbacks have written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._batches: dict[str, Batch] = {}

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, *_: Any) -> None:
        """Keep a few images of the first batch, and of the first one of the final phase."""
        if not isinstance(pl_module, YoloxModule) or not trainer.is_global_zero:
            return
        what = "in the final phase" if pl_module.in_final_phase else "before the final phase"
        if what not in self._batches:
            self._batches[what] = _first_images(batch)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the file."""
        batches, self._batches = self._batches, {}
        if not trainer.is_global_zero or not isinstance(pl_module, YoloxModule):
            return
        try:
            write_report(self.folder / REPORT, self._content(trainer, pl_module, batches))
        except Exception as error:  # noqa: BLE001 - the run is done and its weights are written: nothing may spoil that
            _log.warning("%s was not written: %s: %s", REPORT, type(error).__name__, error)

    def _content(self, trainer: pl.Trainer, module: YoloxModule, batches: dict[str, Batch]) -> Report:
        data = trainer.datamodule  # type: ignore[attr-defined]
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        evaluation = next((item for item in callbacks if isinstance(item, Evaluation)), None)
        rows = [row for item in callbacks if isinstance(item, EpochLog) for row in item.rows]
        run = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        judged, missing = self._judged(data.val_set, None if evaluation is None else evaluation.best_epoch)
        train, val = data.train_set, data.val_set
        parameters = sum(item.numel() for item in module.detector.parameters())
        facts = {
            "model": f"{module.experiment.exp_name}, {parameters:,} parameters",
            "data": f"{len(train)} images to learn from, {len(val)} to judge on: {train.source}",
            "classes": f"{len(module.class_names)}: {shortened(module.class_names, 12)}",
            **_best(evaluation),
            **_run_facts(run, module),
        }
        return Report(
            title=f"Training of {module.experiment.exp_name}",
            facts=facts,
            epochs=rows,
            batches=tuple(batches.items()),
            splits={"train": train, "val": val},
            judged=judged,
            missing=missing,
        )

    def _judged(self, data: CocoDataset, best_epoch: int | None) -> tuple[Judged | None, str]:
        """Return the evaluation of the best weights, or why there is none."""
        if best_epoch is None:
            return None, "No AP was measured."
        path = self.folder / BEST_DETECTIONS
        if not path.exists():
            return None, f"What the best weights found is not in {BEST_DETECTIONS}: they were evaluated by another run."
        detections, epoch = read_detections(path)
        if epoch != best_epoch:
            return None, f"{BEST_DETECTIONS} is of epoch {epoch}, the best weights are of epoch {best_epoch}."
        truth = only_images(data.ground_truth_json(), set(detections))
        result = EvaluationResult(coco_metric(truth, detections), Times(), detections, len(data) - len(truth["images"]))
        return Judged(result, data, f"epoch {epoch}" if epoch else "the weights of the start"), ""


def _first_images(batch: Batch) -> Batch:
    """Return a copy of the first few images: the loader uses its memory again."""
    targets = Targets(*(part[:_NUM_IMAGES].clone() for part in batch.targets))
    rest = (part[:_NUM_IMAGES].clone() for part in (batch.image_ids, batch.original_sizes, batch.num_cut))
    return Batch(batch.images[:_NUM_IMAGES].to(torch.uint8, copy=True), targets, *rest)


def _best(evaluation: Evaluation | None) -> dict[str, str]:
    if evaluation is None or evaluation.best_epoch is None:
        return {"best AP": "none was measured"}
    best = next(row for row in evaluation.history if row["epoch"] == evaluation.best_epoch)
    which = f"epoch {evaluation.best_epoch}" if evaluation.best_epoch else "the weights of the start"
    return {"best AP": f"{best['val/AP']:.4f} (AP50 {best['val/AP50']:.4f}, AP75 {best['val/AP75']:.4f}), {which}"}


def _run_facts(run: dict[str, Any], module: YoloxModule) -> dict[str, str]:
    """Return the facts of ``run.json`` that a reader asks for first."""
    recipe, plan, machine = module.experiment.recipe, run["plan"] or {}, run["machine"]
    epochs = run.get("epochs", [])
    memory = sum(run["peak_memory_bytes"]) / 2**30
    processes = len(plan.get("slots", [None]))
    done, steps = run["epochs_done"], run["steps_done"]
    return {
        "length": f"{done} of {recipe.max_epoch} epochs, {steps} steps of {module.batch_size} images",
        "time": f"{_minutes(sum(row['seconds'] for row in epochs))} in the steps of all epochs, "
        f"{_minutes(run['end_to_end_seconds'])} from the last start to the end",
        "speed": f"{run.get('images_per_second', 0.0):.1f} images/s, {processes} process(es), "
        f"precision {plan.get('precision', 'unknown')}, {memory:.1f} GiB at most",
        "machine": f"{machine['model_name']}, {machine['usable_cores']} cores, {' '.join(machine['isa'])}",
        "versions": ", ".join(f"{name} {version}" for name, version in run["versions"].items()),
    }


def _minutes(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.1f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
