"""Checkpoints inside an epoch, history, and averages that follow optimizer steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.callbacks import Callback

from yolox.config import Experiment, apply_fields
from yolox.data.datamodule import YoloxDataModule
from yolox.data.sample_dataset import draw_sample_set
from yolox.errors import YoloxError
from yolox.experiments import EXPERIMENTS
from yolox.recipe.callbacks import CheckpointFiles, Evaluation
from yolox.recipe.epoch_log import EpochLog
from yolox.recipe.module import YoloxModule
from yolox.recipe.schedule import build_schedule, highest_learning_rate
from yolox.trainer.trainer import Trainer

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning:pytorch_lightning", "ignore::FutureWarning:pytorch_lightning"
)


class StopError(Exception):
    pass


class StopInside(CheckpointFiles):
    """Writes after every step and dies after step 4, in the middle of epoch 2."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if trainer.global_step == 4:
            raise StopError


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    draw_sample_set(folder, num_train=9, num_val=2)
    return folder


@pytest.fixture
def experiment(data_dir: Path) -> Experiment:
    short = {"max_epoch": 3, "warmup_epochs": 1, "no_aug_epochs": 1, "eval_interval": 1, "num_classes": 6}
    small = {"input_size": 64, "test_size": 64, "random_size": "2,2", "data_dir": str(data_dir), "data_num_workers": 0}
    return apply_fields(EXPERIMENTS["yolox_nano"], {**short, **{key: str(value) for key, value in small.items()}})


def parts(experiment: Experiment, batch_size: int = 3) -> tuple[YoloxModule, YoloxDataModule]:
    data = YoloxDataModule(
        experiment.data,
        batch_size=batch_size,
        test_size=experiment.eval.test_size,
        seed=experiment.seed,
        final_phase_from_epoch=2,
    )
    return YoloxModule(experiment, data.class_names, batch_size, data.batches_per_epoch), data


def fit(
    experiment: Experiment,
    files: CheckpointFiles,
    resume: Path | None = None,
    callbacks: Sequence[Callback] = (),
    batch_size: int = 3,
) -> YoloxModule:
    module, data = parts(experiment, batch_size)
    callbacks = [*callbacks, Evaluation(experiment), EpochLog(files.folder), files]
    trainer = Trainer(
        max_epochs=experiment.recipe.max_epoch,
        callbacks=callbacks,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        default_root_dir=str(files.folder),
    )
    trainer.fit(module, datamodule=data, ckpt_path=resume)
    return module


def test_resume_from_the_middle_of_an_epoch(experiment: Experiment, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "broken").mkdir()
    whole = fit(experiment, CheckpointFiles(tmp_path / "whole"))
    with pytest.raises(StopError):
        fit(experiment, StopInside(tmp_path / "broken", every_minutes=0.0))
    latest = tmp_path / "broken" / "latest_ckpt.pth"
    assert torch.load(latest, weights_only=True)["global_step"] == 4
    resumed = fit(experiment, CheckpointFiles(tmp_path / "broken"), latest)
    assert resumed.global_step == whole.global_step == 9
    torch.testing.assert_close(resumed.detector.state_dict(), whole.detector.state_dict(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(
        resumed.deployed_detector.state_dict(), whole.deployed_detector.state_dict(), rtol=1e-6, atol=1e-7
    )


def test_resume_from_the_middle_of_an_epoch_with_another_batch_begins_that_epoch_again(
    experiment: Experiment, tmp_path: Path
) -> None:
    with pytest.raises(StopError):
        fit(experiment, StopInside(tmp_path, every_minutes=0.0))
    files = CheckpointFiles(tmp_path)
    resumed = fit(experiment, files, files.latest, batch_size=9)
    assert resumed.global_step == 3  # of one step an epoch: the first was done, the second begins again
    recipe, rate = experiment.recipe, highest_learning_rate(experiment.recipe, 9)
    content = torch.load(files.latest, weights_only=True)
    assert content["optimizer_states"][0]["param_groups"][0]["initial_lr"] == pytest.approx(rate)
    assert content["lr_schedulers"][0]["_last_lr"][0] == pytest.approx(rate * build_schedule(recipe, 9, 1)(3))
    epochs = [line.split(",")[0] for line in (tmp_path / "results.csv").read_text().splitlines()[1:]]
    assert epochs == ["1", "2", "3"]


def test_history_keeps_the_newest_files(experiment: Experiment, tmp_path: Path) -> None:
    fit(experiment, CheckpointFiles(tmp_path, history=2))
    assert sorted(file.name for file in tmp_path.glob("epoch_*")) == ["epoch_2_ckpt.pth", "epoch_3_ckpt.pth"]
    assert (tmp_path / "best_ckpt.pth").exists()


class Diverge(Callback):
    """Makes a weight NaN in the second epoch, as a rate that is too high does."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == 5:
            with torch.no_grad():
                pl_module.get_parameter("detector.head.stems.0.conv.weight")[0, 0, 0, 0] = float("nan")


def test_weights_that_are_not_finite_never_replace_a_checkpoint(experiment: Experiment, tmp_path: Path) -> None:
    files = CheckpointFiles(tmp_path)
    with pytest.raises(YoloxError, match=r"after step \d+ the weights in .* are not finite|not finite"):
        fit(experiment, files, callbacks=[Diverge()])
    for path in (files.latest, files.best):
        content = torch.load(path, weights_only=True)
        assert content["global_step"] == 3
        assert all(bool(torch.isfinite(value).all()) for value in content["model"].values())
    assert sorted(item.name for item in tmp_path.glob("*.pth")) == ["best_ckpt.pth", "latest_ckpt.pth"]


def test_without_averages_the_raw_weights_are_deployed(experiment: Experiment, tmp_path: Path) -> None:
    plain = replace(experiment, recipe=replace(experiment.recipe, ema=False, max_epoch=1))
    module = fit(plain, CheckpointFiles(tmp_path))
    content = torch.load(tmp_path / "latest_ckpt.pth", weights_only=True)
    torch.testing.assert_close(content["model"], dict(module.detector.state_dict()))


def test_evaluation_is_due_at_intervals_in_the_final_phase_and_at_the_end() -> None:
    recipe = {"max_epoch": 20, "no_aug_epochs": 3, "eval_interval": 8}
    evaluation = Evaluation(apply_fields(EXPERIMENTS["yolox_nano"], recipe))
    assert [epoch + 1 for epoch in range(20) if evaluation.due(epoch)] == [8, 16, 18, 19, 20]
