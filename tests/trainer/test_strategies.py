"""The contract of every strategy: two processes learn exactly what one learns, on a real network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from tiny import QUIET
from torch import nn

from yolox.config import Experiment, apply_fields, parse_overrides
from yolox.data.datamodule import YoloxDataModule
from yolox.data.sample_dataset import draw_sample_set
from yolox.experiments import get_experiment
from yolox.recipe.callbacks import Evaluation
from yolox.recipe.ema import ModelEma
from yolox.recipe.module import YoloxModule
from yolox.trainer.plan import BACKENDS
from yolox.trainer.trainer import Trainer

pytestmark = [pytest.mark.processes, *QUIET]
IMAGES, EPOCHS, BATCH = 40, 2, 4
WORDS = (
    *("input_size", "64", "test_size", "64", "random_size", "2,3", "mosaic_prob", "0", "enable_mixup", "False"),
    *("max_epoch", str(EPOCHS), "warmup_epochs", "0", "no_aug_epochs", "1", "eval_interval", "2", "cache", "off"),
    *("basic_lr_per_img", "0.0015"),  # ten times the usual: weights move far beyond the tolerance
    *("test_conf", "0.00001"),  # after 20 steps no box is sure of itself
)


class FrozenStatistics(pl.Callback):
    """Keeps batch normalisations in evaluation mode: a batch of four at 64 pixels has no statistics to speak of."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for part in pl_module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.eval()


@torch.no_grad()
def let_signals_through_(module: YoloxModule) -> None:
    """Scale a fresh network so that without statistics no layer mutes the signal."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.weight.fill_(2.5)
    module.detector.get_parameter("backbone.backbone.stem.conv.bn.weight").div_(128)  # pixels go up to 255
    module.ema = ModelEma(module.detector)


class Drawn(pl.Callback):
    """Notes which images each rank draws, one file for each epoch and rank."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        with (self.folder / f"drawn-{trainer.current_epoch}-{trainer.global_rank}").open("a") as file:
            file.write("".join(f"{number}\n" for number in batch.image_ids.tolist()))


def drawn(folder: Path, epoch: int) -> list[int]:
    return sorted(int(line) for path in folder.glob(f"drawn-{epoch}-*") for line in path.read_text().splitlines())


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    draw_sample_set(folder, num_train=IMAGES, num_val=8)
    plain = apply_fields(get_experiment("yolox_nano"), parse_overrides(WORDS))
    data = replace(plain.data, data_dir=str(folder), data_num_workers=0)
    return replace(plain, data=data, model=replace(plain.model, num_classes=6))


def train(experiment: Experiment, folder: Path, **arguments: Any) -> tuple[YoloxModule, Evaluation, Trainer]:
    data = YoloxDataModule(experiment.data, batch_size=BATCH, test_size=experiment.eval.test_size)
    module = YoloxModule(experiment, data.class_names, BATCH, data.batches_per_epoch)
    let_signals_through_(module)
    evaluation = Evaluation(experiment)
    settings = {
        "max_epochs": EPOCHS,
        "callbacks": [evaluation, Drawn(folder), FrozenStatistics()],
        "logger": False,
        "default_root_dir": str(folder),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "limit_val_batches": 0,
        "channels_last": True,
    }
    trainer = Trainer(**{**settings, **arguments})
    trainer.fit(module, datamodule=data)
    return module, evaluation, trainer


@pytest.fixture(scope="module")
def alone(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> tuple[YoloxModule, Evaluation]:
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # two threads of one process wait for each other on a busy machine
        module, evaluation, trainer = train(experiment, folder)
    assert trainer.global_step == 20
    assert all(len(drawn(folder, epoch)) == len(set(drawn(folder, epoch))) == IMAGES for epoch in range(EPOCHS))
    fresh = YoloxModule(experiment, module.class_names, BATCH, 10).detector.state_dict()
    stem = "backbone.backbone.stem.conv.conv.weight"
    assert float((module.detector.state_dict()[stem] - fresh[stem]).abs().max()) > 1e-4, "nothing was learnt"
    return module, evaluation


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_processes_learn_what_one_learns(
    backend: str,
    experiment: Experiment,
    alone: tuple[YoloxModule, Evaluation],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    cluster = request.getfixturevalue("ray_cluster").address if backend == "ray" else None
    if backend == "spark":
        request.getfixturevalue("spark_context")
    module, evaluation, trainer = train(
        experiment, tmp_path, num_processes=2, distributed_backend=backend, cluster=cluster
    )
    assert trainer.global_step == 20
    for epoch in range(EPOCHS):
        assert len(list(tmp_path.glob(f"drawn-{epoch}-*"))) == 2
        assert drawn(tmp_path, epoch) == list(dict.fromkeys(drawn(tmp_path, epoch)))
        assert len(drawn(tmp_path, epoch)) == IMAGES
    expected, expected_evaluation = alone
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(module.state_dict()[key], value, rtol=0, atol=1e-5, msg=f"{key} differs")
    assert evaluation.history == expected_evaluation.history
    assert evaluation.history[-1]["epoch"] == EPOCHS
