"""NaN planted in a step: the run stops, leaves the step out, or goes back; in one process and in several."""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from yolox.config import Experiment, apply_fields
from yolox.data.datamodule import YoloxDataModule
from yolox.data.sample_dataset import draw_sample_set
from yolox.experiments import EXPERIMENTS
from yolox.recipe.callbacks import CheckpointFiles, Evaluation
from yolox.recipe.epoch_log import EpochLog
from yolox.recipe.finite import MAX_RESTORED, MAX_SKIPPED_IN_A_ROW, FiniteValues, NotFiniteError
from yolox.recipe.module import YoloxModule
from yolox.trainer.trainer import Trainer

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning:pytorch_lightning", "ignore::FutureWarning:pytorch_lightning"
)
STEPS = 3  # of an epoch
STATISTICS = "detector.backbone.backbone.stem.conv.bn.running_mean"


class Poisoned(YoloxModule):
    """Its loss, and one statistic of a BatchNorm, are NaN in some steps (counted from 1) of one process."""

    poisoned_steps: Sequence[int] = ()
    poisoned_rank = 0
    poisons_loss = True

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if self.global_step + 1 in self.poisoned_steps and self.global_rank == self.poisoned_rank:
            self.get_buffer(STATISTICS).data[0] = math.nan  # unseen by autograd
            loss = loss * math.nan if self.poisons_loss else loss
        return loss


class States(Callback):
    """Keeps a copy of all that a step changes, its rate and the scale of its loss, after every step."""

    def __init__(self) -> None:
        self.after: list[dict[str, Tensor]] = []
        self.rates: list[float] = []
        self.scales: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.after.append(state_of(trainer, pl_module))
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.scales.append(trainer.scaler.get_scale() if trainer.scaler is not None else 1.0)


def state_of(trainer: Any, module: Any) -> dict[str, Tensor]:
    momentum = trainer.optimizers[0].state_dict()["state"]
    state = {f"momentum {key}": value["momentum_buffer"] for key, value in momentum.items()}
    state.update(module.state_dict())
    state.update({f"average {key}": value for key, value in module.ema.model.state_dict().items()})
    return {key: value.clone() for key, value in state.items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    draw_sample_set(folder, num_train=2 * STEPS, num_val=2)
    return folder


def experiment_of(data_dir: Path, **fields: object) -> Experiment:
    small = {"input_size": 64, "test_size": 64, "random_size": "2,2", "data_dir": str(data_dir), "data_num_workers": 0}
    short = {"max_epoch": 2, "warmup_epochs": 0, "no_aug_epochs": 0, "eval_interval": 1, "num_classes": 6}
    values = {**short, **small, **fields}
    return apply_fields(EXPERIMENTS["yolox_nano"], {key: str(value) for key, value in values.items()})


def fit(
    experiment: Experiment,
    folder: Path,
    steps: Sequence[int],
    resume: Path | None = None,
    poisons_loss: bool = True,
    **arguments: Any,
) -> tuple[FiniteValues, States, Poisoned]:
    """Train with batches of two: three steps an epoch."""
    folder.mkdir(exist_ok=True)
    data = YoloxDataModule(experiment.data, batch_size=2, test_size=experiment.eval.test_size, seed=0)
    module = Poisoned(experiment, data.class_names, 2, data.batches_per_epoch)
    module.poisoned_steps, module.poisoned_rank = tuple(steps), arguments.get("num_processes", 1) - 1
    module.poisons_loss = poisons_loss
    files = CheckpointFiles(folder)
    finite, states = FiniteValues(experiment.recipe.on_nonfinite, files.latest), States()
    trainer = Trainer(
        max_epochs=experiment.recipe.max_epoch,
        callbacks=[finite, states, Evaluation(experiment), EpochLog(folder), files],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        default_root_dir=str(folder),
        **arguments,
    )
    trainer.fit(module, datamodule=data, ckpt_path=resume)
    return finite, states, module


def assert_good_files(folder: Path, step: int) -> None:
    for name in ("latest_ckpt.pth", "best_ckpt.pth"):
        content = torch.load(folder / name, weights_only=True)
        assert all(bool(value.isfinite().all()) for value in content["model"].values())
    assert torch.load(folder / "latest_ckpt.pth", weights_only=True)["global_step"] == step


@pytest.mark.parametrize("precision", ["32", "bf16", "16"])
def test_a_skipped_step_changes_nothing(
    data_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, precision: str
) -> None:
    experiment = experiment_of(data_dir, on_nonfinite="skip")
    with caplog.at_level(logging.WARNING):
        finite, states, _ = fit(experiment, tmp_path, [2], precision=precision)
    assert (finite.skipped, finite.restored) == (1, 0)
    assert equal(states.after[1], states.after[0])
    assert not equal(states.after[2], states.after[1])
    told = next(record.getMessage() for record in caplog.records if "step skipped" in record.getMessage())
    assert "at step 2 (epoch 1)" in told
    assert "process 0 (images " in told
    assert_good_files(tmp_path, 2 * STEPS)
    with (tmp_path / "results.csv").open() as file:
        assert all(math.isfinite(float(value)) for row in csv.DictReader(file) for value in row.values() if value)


def test_the_loss_scale_of_half_precision_goes_on(data_dir: Path, tmp_path: Path) -> None:
    """A NaN loss halves it once, as gradients that overflow do, until steps are taken."""
    experiment = experiment_of(data_dir, on_nonfinite="skip", max_epoch=4, eval_interval=9)
    finite, states, _ = fit(experiment, tmp_path, [2], precision="16")
    assert finite.skipped == 1
    scales = [1024.0, *states.scales]
    assert scales[2] == scales[1] / 2
    assert all(after in (before, before / 2) for before, after in pairwise(scales))
    name = "detector.head.stems.0.conv.weight"
    assert not torch.equal(states.after[-1][name], states.after[1][name])


def test_too_many_skipped_steps_in_a_row_end_the_run(data_dir: Path, tmp_path: Path) -> None:
    bad = range(STEPS + 1, 100)
    with pytest.raises(NotFiniteError, match=rf"after {MAX_SKIPPED_IN_A_ROW} skipped steps in a row, at step 14"):
        fit(experiment_of(data_dir, on_nonfinite="skip", max_epoch=5, eval_interval=9), tmp_path, bad)
    content = torch.load(tmp_path / "latest_ckpt.pth", weights_only=True)
    assert all(bool(value.isfinite().all()) for value in content["model"].values())


def test_statistics_count_in_a_run_that_goes_on_inside_an_epoch(data_dir: Path, tmp_path: Path) -> None:
    experiment = experiment_of(data_dir)
    fit(experiment, tmp_path, [], max_steps=1)
    with pytest.raises(NotFiniteError, match=r"step 2 .*the statistics of BatchNorm, with a finite loss"):
        fit(experiment, tmp_path, [2], tmp_path / "latest_ckpt.pth", poisons_loss=False)


def test_single_steps_may_be_skipped_for_ever(data_dir: Path, tmp_path: Path) -> None:
    every_second = range(2, 100, 2)
    experiment = experiment_of(data_dir, on_nonfinite="skip", max_epoch=8, eval_interval=9)
    assert fit(experiment, tmp_path, every_second)[0].skipped == 8 * STEPS // 2 > MAX_SKIPPED_IN_A_ROW


def test_going_back_takes_the_state_of_the_checkpoint_and_half_the_rate(
    data_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    experiment = experiment_of(data_dir, on_nonfinite="restore", max_epoch=3)
    _, undisturbed, _ = fit(experiment, tmp_path / "good", [])
    with caplog.at_level(logging.WARNING):
        finite, states, _ = fit(experiment, tmp_path / "bad", [5])
    assert (finite.skipped, finite.restored) == (0, 1)
    assert equal(states.after[3], undisturbed.after[3])
    assert equal(states.after[4], states.after[2])  # the end of the first epoch: the last checkpoint
    assert not equal(states.after[5], states.after[4])
    assert states.rates[:4] == undisturbed.rates[:4]
    assert states.rates[4:] == pytest.approx([rate / 2 for rate in undisturbed.rates[4:]])
    assert "went back to the weights of step 3 (latest_ckpt.pth), at step 5" in caplog.text
    assert_good_files(tmp_path / "bad", 3 * STEPS)
    more = experiment_of(data_dir, on_nonfinite="restore", max_epoch=4)
    _, resumed, _ = fit(more, tmp_path / "bad", [], tmp_path / "bad" / "latest_ckpt.pth")
    _, whole, _ = fit(more, tmp_path / "whole", [])
    assert resumed.rates == pytest.approx([rate / 2 for rate in whole.rates[9:]])


def test_the_first_step_can_go_back_to_the_start(data_dir: Path, tmp_path: Path) -> None:
    experiment = experiment_of(data_dir, on_nonfinite="restore", max_epoch=1)
    finite, states, _ = fit(experiment, tmp_path, [1])
    assert finite.restored == 1
    fresh = Poisoned(experiment, ["a"] * 6, 2, STEPS)
    after = states.after[0]
    assert all(torch.equal(value, after[key]) for key, value in fresh.state_dict().items())
    assert_good_files(tmp_path, STEPS)


def test_a_run_goes_back_only_so_often(data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFiniteError, match=rf"after going back {MAX_RESTORED} times, at step 7 .*--resume"):
        fit(experiment_of(data_dir, on_nonfinite="restore", max_epoch=9, eval_interval=9), tmp_path, range(4, 99))
    content = torch.load(tmp_path / "latest_ckpt.pth", weights_only=True)
    assert content["global_step"] == 2 * STEPS
    assert content["lr_schedulers"][0]["base_lrs"][0] == pytest.approx(2 * 0.01 / 64 / 2**MAX_RESTORED)


@pytest.mark.parametrize(("bad", "advice"), [(2, "No checkpoint had been written"), (5, "'latest_ckpt.pth' holds")])
def test_a_run_that_stops_names_only_files_that_exist(data_dir: Path, tmp_path: Path, bad: int, advice: str) -> None:
    with pytest.raises(NotFiniteError, match=rf"stopped at step {bad} .*process 0.*{advice}"):
        fit(experiment_of(data_dir), tmp_path, [bad])
    written = sorted(path.name for path in tmp_path.glob("*.pth"))
    assert written == ([] if bad == 2 else ["best_ckpt.pth", "latest_ckpt.pth"])


@pytest.mark.parametrize("on_nonfinite", ["skip", "restore"])
def test_all_processes_act_together(data_dir: Path, tmp_path: Path, on_nonfinite: str) -> None:
    """The loss of the second process alone is NaN."""
    experiment = experiment_of(data_dir, on_nonfinite=on_nonfinite)
    finite, states, module = fit(experiment, tmp_path, [4], num_processes=2)
    assert (finite.skipped, finite.restored) == ((1, 0) if on_nonfinite == "skip" else (0, 1))
    assert equal(states.after[3], states.after[2])
    assert not equal(states.after[4], states.after[3])
    assert all(bool(value.isfinite().all()) for value in module.state_dict().values())
    assert_good_files(tmp_path, 2 * STEPS)


def test_the_process_is_named(data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFiniteError, match=r"stopped at step 2 .*process 1 \(images"):
        fit(experiment_of(data_dir), tmp_path, [2], num_processes=2)
