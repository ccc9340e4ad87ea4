"""What is trained, for how long and in which steps: freezing, ends of a run, accumulation, clipping, precisions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from yolox.config import Experiment, apply_fields
from yolox.data.datamodule import YoloxDataModule
from yolox.data.sample_dataset import draw_sample_set
from yolox.errors import UsageError
from yolox.experiments import EXPERIMENTS
from yolox.models.detector import build_detector
from yolox.recipe.callbacks import CheckpointFiles, Evaluation, TimeBudget
from yolox.recipe.module import YoloxModule
from yolox.recipe.optim import freeze_
from yolox.recipe.schedule import highest_learning_rate, steps_of_epoch
from yolox.trainer.operator_precision import OperatorLists, OperatorPrecisionMode
from yolox.trainer.trainer import Trainer

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning:pytorch_lightning", "ignore::FutureWarning:pytorch_lightning"
)
GAUDI_BF16 = (
    "max_pool2d_with_indices",
    "max_pool2d",
    "conv2d",
    "bmm",
    "mul",
    "mm",
    "mv",
    "div",
    "batch_norm",
    "sigmoid",
)
GAUDI_FP32 = ("log_softmax", "nll_loss", "softmax", "binary_cross_entropy", "l1_loss", "view")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    draw_sample_set(folder, num_train=6, num_val=2)
    return folder


def experiment_of(data_dir: Path, **fields: object) -> Experiment:
    small = {"input_size": 64, "test_size": 64, "random_size": "2,2", "data_dir": str(data_dir), "data_num_workers": 0}
    short = {"max_epoch": 2, "warmup_epochs": 0, "no_aug_epochs": 0, "eval_interval": 9, "num_classes": 6}
    values = {**short, **small, **fields}
    return apply_fields(EXPERIMENTS["yolox_nano"], {key: str(value) for key, value in values.items()})


class Losses(Callback):
    """Keeps the loss of every batch."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.values.append(float(trainer.callback_metrics["train/total"]))


def fit(
    experiment: Experiment, *callbacks: Callback, resume: Path | None = None, **arguments: Any
) -> tuple[YoloxModule, Trainer]:
    """Train with batches of two: three steps an epoch."""
    data = YoloxDataModule(experiment.data, batch_size=2, test_size=experiment.eval.test_size, seed=0)
    recipe = experiment.recipe
    module = YoloxModule(experiment, data.class_names, 2, steps_of_epoch(data.batches_per_epoch, recipe))
    trainer = Trainer(
        max_epochs=recipe.max_epoch,
        max_steps=recipe.steps or -1,
        accumulate_grad_batches=recipe.accumulate,
        gradient_clip_val=recipe.clip,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=any(isinstance(item, CheckpointFiles) for item in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        **arguments,
    )
    trainer.fit(module, datamodule=data, ckpt_path=resume)
    return module, trainer


def test_four_precisions_learn_the_same(data_dir: Path) -> None:
    """The loss after the same steps from the same weights; half precision skips what its scaler overflows."""
    losses: dict[str, list[float]] = {}
    for precision in ("64", "32", "bf16", "16"):
        seen = Losses()
        module, _ = fit(experiment_of(data_dir, max_epoch=1), seen, precision=precision)
        assert all(bool(value.isfinite().all()) for value in module.state_dict().values())
        losses[precision] = seen.values
    for precision, first in (("32", 1e-5), ("bf16", 0.02), ("16", 0.02)):
        assert losses[precision][0] == pytest.approx(losses["64"][0], rel=first)
        # fresh weights cost nearly the same everywhere, so that rounding changes which anchors are matched later on
        assert losses[precision] == pytest.approx(losses["64"], rel=0.05)


def test_the_lists_of_the_gaudi_port_train(data_dir: Path, tmp_path: Path) -> None:
    for name, operators in (("bf16", GAUDI_BF16), ("fp32", GAUDI_FP32)):
        (tmp_path / name).write_text("\n".join(operators))
    files = {"bf16_operations": tmp_path / "bf16", "fp32_operations": tmp_path / "fp32"}
    plain, listed = Losses(), Losses()
    fit(experiment_of(data_dir, steps=2), plain, precision="bf16")
    module, _ = fit(experiment_of(data_dir, steps=2), listed, precision="bf16", **files)
    assert listed.values == pytest.approx(plain.values, rel=0.05)
    with torch.autocast("cpu", torch.bfloat16), OperatorPrecisionMode(OperatorLists(frozenset(GAUDI_BF16)), "cpu"):
        decoded = module(torch.zeros(1, 3, 64, 64))
    assert {value.dtype for value in decoded} == {torch.float32}


def test_frozen_parts_stay(data_dir: Path) -> None:
    experiment = experiment_of(data_dir, max_epoch=1, freeze="backbone.backbone")
    before = YoloxModule(experiment, ("a",) * 6, 2, 3).detector.state_dict()
    module, _ = fit(experiment)
    after = module.detector.state_dict()
    changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert not [key for key in changed if key.startswith("backbone.backbone.")]  # statistics of BatchNorm included
    assert {key.split(".")[0] for key in changed} == {"backbone", "head"}
    assert "head.stems.0.bn.running_mean" in changed


def test_parts_to_freeze_are_checked() -> None:
    detector = build_detector(EXPERIMENTS["yolox_nano"].model)
    with pytest.raises(UsageError, match=r"no part 'backbon'. Did you mean 'backbone'"):
        freeze_(detector, ["backbon"])
    with pytest.raises(UsageError, match="leaves nothing to train"):
        freeze_(detector, ["backbone", "head"])


def test_accumulated_batches_make_one_step(data_dir: Path) -> None:
    experiment = experiment_of(data_dir, max_epoch=1, accumulate=2)
    assert highest_learning_rate(experiment.recipe, 2) == pytest.approx(4 * experiment.recipe.basic_lr_per_img)
    seen = Losses()
    module, trainer = fit(experiment, seen)
    assert (len(seen.values), trainer.global_step, module.steps_per_epoch) == (3, 2, 2)
    assert module.ema is not None
    assert module.ema.updates == 2


def test_clipping_bounds_the_first_step(data_dir: Path) -> None:
    """Without momentum and decay a step is the rate times the gradients, whose norm is at most that of ``clip``."""
    experiment = experiment_of(data_dir, steps=1, clip=0.5, weight_decay=0, momentum=1e-9)
    before = YoloxModule(experiment, ("a",) * 6, 2, 3).detector
    module, _ = fit(experiment)
    pairs = zip(module.detector.parameters(), before.parameters(), strict=True)
    moved = torch.cat([(new - old).flatten() for new, old in pairs]).norm()
    rate = highest_learning_rate(experiment.recipe, 2)
    assert float(moved.detach()) == pytest.approx(0.5 * rate, rel=0.02)


def weights(path: Path) -> dict[str, Tensor]:
    content: dict[str, Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return content


def test_a_run_whose_time_is_used_up_goes_on_where_it_stopped(data_dir: Path, tmp_path: Path) -> None:
    experiment = experiment_of(data_dir, steps=4)
    files = CheckpointFiles(tmp_path / "whole")
    fit(experiment, Evaluation(experiment), files)
    stopped = CheckpointFiles(tmp_path / "stopped")
    evaluation = Evaluation(experiment)
    _, trainer = fit(experiment, TimeBudget(0.0), evaluation, stopped)
    assert trainer.global_step == 1
    assert evaluation.best_epoch == 1
    assert stopped.best.is_file()
    evaluation = Evaluation(experiment)
    _, trainer = fit(experiment, evaluation, stopped, resume=stopped.latest)
    assert trainer.global_step == 4
    assert [row["epoch"] for row in evaluation.history] == [1, 2] or [row["epoch"] for row in evaluation.history] == [2]
    torch.testing.assert_close(weights(stopped.latest), weights(files.latest), rtol=1e-6, atol=1e-7)


def test_patience_stops_a_run_that_no_longer_improves(data_dir: Path) -> None:
    experiment = experiment_of(data_dir, max_epoch=5, eval_interval=1, patience=1, basic_lr_per_img=1e-12)
    evaluation = Evaluation(experiment, before_training=True)
    _, trainer = fit(experiment, evaluation)
    assert evaluation.best_epoch == 0
    assert trainer.global_step == 3  # of one epoch


def test_latest_is_written_at_intervals_and_at_the_end(data_dir: Path, tmp_path: Path) -> None:
    experiment = experiment_of(data_dir, max_epoch=3)
    steps: list[int] = []

    class Written(CheckpointFiles):
        def _write(self, trainer: Any, copies: Any = ()) -> None:
            steps.append(trainer.global_step)
            super()._write(trainer, copies)

    fit(experiment, Written(tmp_path, every_epochs=2))
    assert steps == [6, 9]
    steps.clear()
    fit(experiment, Written(tmp_path, every_epochs=5, every_steps=4))
    assert steps == [4, 8, 9]
