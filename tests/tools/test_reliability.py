"""What a run promises when it is killed or repeated: the figures of docs/reliability.md come from here."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import described
from torch import Tensor
from training_runs import SILENT

from yolox.experiments import EXPERIMENTS
from yolox.kernels.library import SWITCH, host_variants
from yolox.prediction.models import load_predictor
from yolox.recipe.module import YoloxModule
from yolox.structures import Batch
from yolox.tools import train as train_tool

pytestmark = [SILENT]
SMALL = ("input_size", "64", "test_size", "64", "random_size", "2,3", "eval_interval", "1", "no_aug_epochs", "1")


def words(data: Path, out: Path, *more: str) -> list[str]:
    given = ["-n", "yolox_nano", "-b", "4", "--data_dir", str(data), "--output_dir", str(out), "--logger", "none"]
    return [*given, *more, *SMALL]


def weights(out: Path, name: str = "latest_ckpt.pth") -> dict[str, Tensor]:
    content = torch.load(out / "yolox_nano" / name, weights_only=True)
    return {**content["state_dict"], **{f"average.{key}": value for key, value in content["model"].items()}}


def differing(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
    assert first.keys() == second.keys()
    return [key for key, value in first.items() if not torch.equal(value, second[key])]


@pytest.mark.processes
@pytest.mark.parametrize("more", [(), ("--num_processes", "2")], ids=["1 process", "2 processes"])
@pytest.mark.parametrize("precision", ["32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_the_same_command_gives_the_same_weights(
    precision: str, more: tuple[str, ...], data: Path, tmp_path: Path
) -> None:
    """Bit for bit, whatever the number of loader processes."""
    for name, workers in (("a", "0"), ("b", "1")):
        given = [*words(data, tmp_path / name, *more, "--precision", precision, "--num_workers", workers)]
        assert train_tool.main([*given, "max_epoch", "1", "warmup_epochs", "0"]) == 0
    assert differing(weights(tmp_path / "a"), weights(tmp_path / "b")) == []


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("more", [(), ("--num_processes", "2")], ids=["1 process", "2 processes"])
@pytest.mark.parametrize("variant", [*(one.name for one in host_variants()), "0"])
def test_every_kernel_repeats_its_weights(
    variant: str, more: tuple[str, ...], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With each instruction set that this processor has, and with PyTorch's operators alone."""
    monkeypatch.setenv(SWITCH, variant)
    for name in ("a", "b"):
        given = [*words(data, tmp_path / name, *more, "--precision", "bf16", "--num_workers", "0")]
        assert train_tool.main([*given, "max_epoch", "1", "warmup_epochs", "0"]) == 0
    assert differing(weights(tmp_path / "a"), weights(tmp_path / "b")) == []


@pytest.mark.parametrize("epochs", [30, pytest.param(700, marks=pytest.mark.slow)])
def test_memory_stays_level_over_steps(
    epochs: int, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three steps an epoch, and an evaluation and a checkpoint in every third: 2,100 steps and 233 evaluations."""
    resident: list[int] = []
    step = YoloxModule.training_step

    def measured(self: YoloxModule, batch: Batch, batch_idx: int) -> Tensor:
        resident.append(resident_bytes())
        return step(self, batch, batch_idx)

    monkeypatch.setattr(YoloxModule, "training_step", measured)
    given = words(data, tmp_path, "--num_workers", "0", "max_epoch", str(epochs), "eval_interval", "3")
    quick = ["ckpt_interval", "3", "no_aug_epochs", "0", "width", "0.125", "input_size", "32", "random_size", "1,2"]
    assert train_tool.main([*given, *quick]) == 0
    assert len(resident) == 3 * epochs
    settled = len(resident) // 2  # by then every size was seen
    assert resident[-1] - resident[settled] < 16e6
    report(f"{len(resident)} steps, {epochs // 3} evaluations", resident)


@pytest.mark.parametrize("amount", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_memory_stays_level_over_predictions(amount: int, tmp_path: Path) -> None:
    """Of images of all sizes."""
    model = replace(EXPERIMENTS["yolox_nano"].model, width=0.0625, num_classes=2)
    experiment = replace(EXPERIMENTS["yolox_nano"], model=model)
    torch.save(described(experiment, ["a", "b"]), tmp_path / "a.pth")
    predictor = load_predictor(tmp_path / "a.pth", input_size=64)
    sizes = np.random.default_rng(0)
    resident = []
    for _ in range(amount):
        height, width = sizes.integers(16, 256, 2)
        predictor([np.full((height, width, 3), 90, np.uint8)], confidence=0.001, nms_iou=0.5)
        resident.append(resident_bytes())
    assert resident[-1] - resident[amount // 2] < 16e6
    report(f"{amount} predictions", resident)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def report(what: str, resident: list[int]) -> None:
    """Print the figures of docs/reliability.md (``pytest -s`` shows them)."""
    tenths = [resident[len(resident) * part // 10] for part in range(1, 10)] + [resident[-1]]
    sys.stdout.write(f"\n{what}: resident MB after each tenth {[round(size / 1e6) for size in tenths]}\n")


def best_is_in_step_with_latest(out: Path) -> bool:
    """Return whether there is a ``latest``; assert that the ``best`` that it tells of is there, and no older one."""
    folder = out / "yolox_nano"
    if not (folder / "latest_ckpt.pth").exists():
        return False
    latest = torch.load(folder / "latest_ckpt.pth", weights_only=True)
    (evaluation,) = (state for name, state in latest["callbacks"].items() if name.startswith("Evaluation"))
    if evaluation["best_epoch"]:
        best = torch.load(folder / "best_ckpt.pth", weights_only=True)
        (known,) = (state for name, state in best["callbacks"].items() if name.startswith("Evaluation"))
        assert known["best_epoch"] >= evaluation["best_epoch"]
    return True


@pytest.mark.slow
def test_kills_at_random_moments_change_nothing(data: Path, tmp_path: Path) -> None:
    length = ("max_epoch", "8", "warmup_epochs", "1", "--num_workers", "1")
    assert train_tool.main([*words(data, tmp_path / "whole"), *length]) == 0
    chance, kills, written = random.Random(0), 0, 0
    command = [sys.executable, "-m", "yolox.tools.train", *words(data, tmp_path / "killed"), *length]
    while True:
        resume = ["--resume"] if (tmp_path / "killed" / "yolox_nano").exists() else []
        process = subprocess.Popen([*command, *resume], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        first = tmp_path / "killed" / "yolox_nano" / "latest_ckpt.pth"
        before = first.stat().st_mtime_ns if first.exists() else 0
        while process.poll() is None and (first.stat().st_mtime_ns if first.exists() else 0) == before:
            time.sleep(0.01)  # a kill before anything is new would only be repeated
        time.sleep(chance.uniform(0.0, 1.5))
        if process.poll() is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
        written += best_is_in_step_with_latest(tmp_path / "killed")
    assert process.returncode == 0
    assert best_is_in_step_with_latest(tmp_path / "killed")
    assert differing(weights(tmp_path / "whole"), weights(tmp_path / "killed")) == []
    assert differing(weights(tmp_path / "whole", "best_ckpt.pth"), weights(tmp_path / "killed", "best_ckpt.pth")) == []
    assert not list((tmp_path / "killed" / "yolox_nano").glob(".*.tmp"))
    assert kills >= 3
    logging.getLogger("yolox").info("%d kills, %d of them with a checkpoint in place", kills, written)
