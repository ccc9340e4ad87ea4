"""What the loggers of a run get: the losses of its steps and the AP of its evaluations."""

from __future__ import annotations

import shlex
import sqlite3
import time
from pathlib import Path

import pytest

from yolox.data.sample_dataset import draw_sample_set
from yolox.tools import train

pytestmark = pytest.mark.filterwarnings("ignore")  # of the services' own libraries
WANTED = {"train/total", "val/AP"}


def run(logger: str, folder: Path) -> Path:
    """Train for one epoch and return the folder of the run."""
    draw_sample_set(folder / "data", num_train=4, num_val=2)
    words = f"-n yolox_nano -b 2 --num_workers 0 --logger {logger} --data_dir {folder / 'data'} --output_dir {folder}"
    small = "input_size 64 test_size 64 max_epoch 1 warmup_epochs 0 print_interval 1 --no-multiscale"
    assert train.main(shlex.split(f"{words} {small} --strict")) == 0
    return folder / "yolox_nano"


def test_tensorboard_gets_losses_and_ap(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run("tensorboard", tmp_path) / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) >= WANTED
    assert 0 <= events.Scalars("val/AP")[-1].value <= 1


def missing_in_wandb(folder: Path) -> list[str]:
    """Return which names the file of a run that has ended lacks; W&B's other process may write a little longer."""
    (record,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    deadline = time.monotonic() + 60
    while missing := [name for name in WANTED if name.encode() not in record.read_bytes()]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return missing


def test_wandb_gets_losses_and_ap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of each training in its own run, though both are in one process."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for training in ("first", "second"):
        assert missing_in_wandb(run("wandb", tmp_path / training)) == []
    assert "gets no more of this run" not in caplog.text


def test_wandb_run_of_the_caller_takes_the_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a sweep, which begins the run."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    with wandb.init(dir=tmp_path) as mine:
        run("wandb", tmp_path / "training")
        assert wandb.run is mine
    assert missing_in_wandb(tmp_path) == []


def test_mlflow_gets_losses_and_ap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    base = sqlite3.connect(run("mlflow", tmp_path) / "mlflow.db")
    try:
        assert {key for (key,) in base.execute("select key from metrics")} >= WANTED
    finally:
        base.close()
