"""The training tool through its command line: files, resuming, start weights, refusals."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from training_runs import SILENT, rows, words

from yolox.checkpoint import load_model
from yolox.data.sampling import SampleRequest
from yolox.data.training_samples import TrainingSamples
from yolox.recipe.module import YoloxModule
from yolox.recipe.schedule import build_schedule, highest_learning_rate
from yolox.structures import Batch, Sample
from yolox.tools import eval as eval_tool
from yolox.tools import train as train_tool

pytestmark = [SILENT]


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    assert train_tool.main(words(data, out)) == 0
    return out


def test_files_of_a_run(finished: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = finished / "yolox_nano"
    assert {"latest_ckpt.pth", "best_ckpt.pth", "results.csv", "curves.png", "report.html"} <= {
        item.name for item in folder.iterdir()
    }
    history = rows(finished)
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]
    assert all("val/AP" in row for row in (history[1], history[3]))
    assert not any("val/AP" in row for row in (history[0], history[2]))
    assert history[3]["train/l1"] > 0 == history[2]["train/l1"]
    loaded = load_model(folder / "best_ckpt.pth")
    assert loaded.class_names == ("circle", "square", "triangle", "star", "cross", "ring")
    assert loaded.experiment.recipe.max_epoch == 4
    assert eval_tool.main(["-c", str(folder / "best_ckpt.pth"), "--data_dir", str(data), "--num_workers", "0"]) == 0
    assert "AP" in capsys.readouterr().out


def test_checkpoint_holds_everything_and_nothing_to_execute(finished: Path) -> None:
    content = torch.load(finished / "yolox_nano" / "latest_ckpt.pth", weights_only=True)
    assert {"model", "state_dict", "optimizer_states", "lr_schedulers", "loops", "experiment", "class_names"} <= set(
        content
    )
    assert content["plan"]["launcher"] == "none"
    raw, averaged = (
        content["state_dict"]["detector.head.stems.0.conv.weight"],
        content["model"]["head.stems.0.conv.weight"],
    )
    assert raw.shape == averaged.shape
    assert not torch.equal(raw, averaged)
    assert content["ema_updates"] == content["global_step"] == 12


@pytest.mark.processes
def test_killed_run_resumes_with_the_same_losses(finished: Path, data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "yolox.tools.train", *words(data, tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    latest = tmp_path / "yolox_nano" / "latest_ckpt.pth"
    deadline = time.monotonic() + 120
    while not latest.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert train_tool.main(words(data, tmp_path, "--resume")) == 0
    for resumed, whole in zip(rows(tmp_path), rows(finished), strict=True):
        assert resumed == pytest.approx(whole, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("precision", ["64", "16", "bf16"])
def test_every_precision_trains_and_evaluates(precision: str, data: Path, tmp_path: Path) -> None:
    one_epoch = ("max_epoch", "1", "no_aug_epochs", "0", "eval_interval", "1")
    assert train_tool.main([*words(data, tmp_path, "--precision", precision), *one_epoch]) == 0
    (row,) = rows(tmp_path)
    assert math.isfinite(row["train/total"])
    assert row["val/AP"] >= 0


@pytest.mark.processes
@pytest.mark.parametrize("synchronised", [False, True], ids=["own share", "sync_bn"])
def test_two_processes(synchronised: bool, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--num_processes", "2", *(["--sync_bn"] if synchronised else [])]
    assert train_tool.main(words(data, tmp_path, *more)) == 0
    assert ("BatchNorm sees the 2 images of each process" in capsys.readouterr().out) is not synchronised
    folder = tmp_path / "yolox_nano"
    report = json.loads((folder / "run.json").read_text())
    assert len(report["plan"]["slots"]) == 2
    assert "2 process(es)" in (folder / "report.html").read_text()
    assert rows(tmp_path)[3]["val/AP"] >= 0


def spied(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float, bool, bool]]:
    """Return a list that gets epoch, rate, whether any image may be a mosaic, and whether L1 is on, of every step."""
    seen: list[tuple[int, float, bool, bool]] = []
    chances: list[bool] = []
    sample, step = TrainingSamples.__getitem__, YoloxModule.training_step

    def spy_sample(self: TrainingSamples, request: SampleRequest) -> Sample | None:
        chances.append(request.mosaic)
        return sample(self, request)

    def spy_step(self: YoloxModule, batch: Batch, batch_idx: int) -> Tensor:
        rate = float(self.trainer.optimizers[0].param_groups[0]["lr"])
        seen.append((self.current_epoch + 1, rate, any(chances), self.in_final_phase))
        chances.clear()
        return step(self, batch, batch_idx)

    monkeypatch.setattr(TrainingSamples, "__getitem__", spy_sample)
    monkeypatch.setattr(YoloxModule, "training_step", spy_step)
    return seen


def test_resume_with_another_batch_computes_the_schedule_anew(
    finished: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = str(finished / "yolox_nano" / "latest_ckpt.pth")  # 4 epochs of 3 steps
    seen = spied(monkeypatch)
    more = ["--resume", "-c", checkpoint, "-b", "5", "max_epoch", "6"]
    assert train_tool.main([*words(data, tmp_path), *more]) == 0
    recipe = replace(load_model(checkpoint).experiment.recipe, max_epoch=6)
    factor = build_schedule(recipe, 5, 2)
    rates = [factor(step) * highest_learning_rate(recipe, 5) for step in range(8, 12)]
    assert [step[0] for step in seen] == [5, 5, 6, 6]
    assert [step[1] for step in seen] == pytest.approx(rates)
    assert [step[2:] for step in seen] == [(True, False)] * 2 + [(False, True)] * 2
    told = capsys.readouterr().out
    for part in ("recipe.max_epoch 4 -> 6", "batch 4 -> 5", "learning rate", "steps of an epoch 3 -> 2", "epoch 5"):
        assert part in told


def test_a_resumed_run_keeps_its_settings_without_being_told_again(
    finished: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished / "yolox_nano", tmp_path / "mine")
    assert train_tool.main(["--resume", "-c", str(tmp_path / "mine" / "latest_ckpt.pth"), "-l", "none"]) == 0
    told = capsys.readouterr().out
    assert "changed since" not in told
    assert "batch 4" in told
    assert f"written to {tmp_path / 'mine'}" in told
    assert sorted(item.name for item in tmp_path.iterdir() if not item.name.startswith(".")) == ["mine"]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("-n", "yolox_tiny"), r"another network (model.width 0.25 -> 0.375; model.depthwise True -> False)"),
        (("swapped",), "the same class names in another order"),
        (("more",), "other classes: 7 "),
    ],
)
def test_resume_with_another_network_or_other_classes_is_refused(
    finished: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], extra: tuple[str, ...], message: str
) -> None:
    labels = {}
    for split in ("train", "val"):
        content = json.loads((data / "annotations" / f"instances_{split}2017.json").read_text())
        names = [category["name"] for category in content["categories"]]
        if extra == ("swapped",):
            for category, name in zip(content["categories"], [names[1], names[0], *names[2:]], strict=True):
                category["name"] = name
        if extra == ("more",):
            content["categories"].append({"id": 99, "name": "new"})
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
        labels[split] = str(tmp_path / f"{split}.json")
    checkpoint = str(finished / "yolox_nano" / "latest_ckpt.pth")
    given = [
        *words(data, tmp_path),
        "--resume",
        "-c",
        checkpoint,
        "train_ann",
        labels["train"],
        "val_ann",
        labels["val"],
    ]
    given += ["train_images", "train2017", "val_images", "val2017", *(extra if len(extra) == 2 else ())]
    assert train_tool.main(given) == 2
    assert message in capfd.readouterr().err


def test_weights_that_are_not_finite_are_refused(finished: Path, data: Path, tmp_path: Path) -> None:
    content = torch.load(finished / "yolox_nano" / "latest_ckpt.pth", weights_only=True)
    content["model"]["head.stems.0.conv.weight"][0, 0, 0, 0] = float("nan")
    torch.save(content, tmp_path / "nan.pth")
    for more in ((), ("--resume",)):
        assert train_tool.main([*words(data, tmp_path, "-c", str(tmp_path / "nan.pth")), *more]) == 4
    assert eval_tool.main(["-c", str(tmp_path / "nan.pth"), "--data_dir", str(data), "--num_workers", "0"]) == 4
    assert [item.name for item in tmp_path.iterdir()] == ["nan.pth"]


def test_start_epoch_moves_a_resumed_run(finished: Path, data: Path, tmp_path: Path) -> None:
    checkpoint = str(finished / "yolox_nano" / "latest_ckpt.pth")
    assert train_tool.main(words(data, tmp_path, "--resume", "-c", checkpoint, "--start_epoch", "4")) == 0
    (last,) = [row for row in rows(tmp_path) if row["epoch"] == 4]
    assert last["train/total"] != rows(finished)[3]["train/total"]
    content = torch.load(tmp_path / "yolox_nano" / "latest_ckpt.pth", weights_only=True)
    assert content["global_step"] == 12


def test_earlier_run_is_set_aside(
    finished: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one_epoch = ("max_epoch", "1", "eval_interval", "5", "no_aug_epochs", "0")
    for _ in range(2):
        start = str(finished / "yolox_nano" / "best_ckpt.pth")
        assert train_tool.main([*words(data, tmp_path, "-c", start), *one_epoch]) == 0
    assert (tmp_path / "yolox_nano.old1" / "latest_ckpt.pth").exists()
    assert "an earlier run" in capsys.readouterr().err


def test_a_refused_start_leaves_the_earlier_run_in_place(
    finished: Path, data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {item: item.stat().st_mtime_ns for item in finished.rglob("*")}
    (data / "no_images.json").write_text('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}')
    for extra, code, message in (
        (("-c", "typo.pth"), 4, "typo.pth"),
        (("--cpu_for_each_process", "x"), 2, "expected ids such as"),
        (("--num_processes", "3"), 2, "does not divide among 3 processes"),
        (("--hmp_bf16", "nofile", "--precision", "bf16"), 2, "nofile"),
        (("val_ann", "nofile.json"), 3, "nofile.json"),
        (("train_ann", str(data / "no_images.json")), 3, "image"),
    ):
        assert train_tool.main([*words(data, finished), *extra]) == code, extra
        error = capfd.readouterr().err
        assert message in error
        assert "Traceback" not in error
        assert {item: item.stat().st_mtime_ns for item in finished.rglob("*")} == before, extra


def test_worse_weights_never_replace_those_of_the_start(
    finished: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A rate that destroys the weights: the best checkpoint stays what the run started from, and can be resumed."""
    start = str(finished / "yolox_nano" / "best_ckpt.pth")
    ruinous = ("basic_lr_per_img", "0.5", "eval_interval", "1")
    assert train_tool.main([*words(data, tmp_path, "-c", start), *ruinous]) == 0
    best, latest = (
        torch.load(tmp_path / "yolox_nano" / name, weights_only=True)["model"]
        for name in ("best_ckpt.pth", "latest_ckpt.pth")
    )
    torch.testing.assert_close(best, torch.load(start, weights_only=True)["model"])
    assert not torch.equal(best["head.stems.0.conv.weight"], latest["head.stems.0.conv.weight"])
    history = rows(tmp_path)
    assert [row["epoch"] for row in history] == [0, 1, 2, 3, 4]
    assert max(row["val/AP"] for row in history) == history[0]["val/AP"]
    said = capsys.readouterr().out
    assert "best: the weights of the start" in said
    assert "classes known to the weights: 6 of 6" in said
    resumed = ("--resume", "-c", str(tmp_path / "yolox_nano" / "best_ckpt.pth"))
    assert train_tool.main([*words(data, tmp_path, *resumed), *ruinous]) == 0
    assert [row["epoch"] for row in rows(tmp_path)] == [0, 1, 2, 3, 4]


def test_recipe_of_a_fine_tuning_is_chosen_and_printed(
    finished: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without -n the network comes from the file and the recipe from the length of the run; a resumed run keeps it."""
    start = str(finished / "yolox_nano" / "best_ckpt.pth")
    command = ["-c", start, "-b", "5", "--data_dir", str(data), "--output_dir", str(tmp_path), "--num_workers", "0"]
    command += ["--logger", "none", "random_size", "2,2", "eval_interval", "9", "max_epoch", "2", "ema_decay", "0.5"]
    assert train_tool.main([*command, "--seed", "1"]) == 0
    said = capsys.readouterr().out
    assert "recipe for a fine-tuning of known classes, 2 epochs of 2 steps" in said
    assert "  basic_lr_per_img 3.05e-06: 0.02 of the official rate" in said
    assert "  ema_decay" not in said
    recipe = load_model(tmp_path / "yolox_nano" / "latest_ckpt.pth").experiment.recipe
    assert (recipe.ema_decay, recipe.no_aug_epochs, recipe.scheduler) == (0.5, 2, "warmcos")
    assert recipe.basic_lr_per_img == pytest.approx(0.01 / 64 * 10 / 256 / 2)
    assert train_tool.main([*words(data, tmp_path, "--resume"), "max_epoch", "3"]) == 0
    assert "recipe for" not in capsys.readouterr().out
    resumed = load_model(tmp_path / "yolox_nano" / "latest_ckpt.pth").experiment.recipe
    assert (resumed.basic_lr_per_img, resumed.scheduler) == (recipe.basic_lr_per_img, "warmcos")


@pytest.mark.parametrize(
    ("extra", "code", "message"),
    [
        (("--epochs", "3"), 2, "unknown option '--epochs'"),
        (("max_epch", "3"), 2, "Did you mean 'max_epoch'"),
        (("num_classes", "3"), 2, "the data set has 6 classes"),
        (("--resume",), 2, "there is no run"),
        (("--start_epoch", "2"), 2, "together with --resume"),
        (("--data_dir", "/nowhere"), 3, "/nowhere"),
        (("-c", "/nowhere.pth"), 4, "/nowhere.pth"),
        (("-n", "yolox_q"), 2, "unknown model"),
        (("--output_dir", "/proc/none"), 1, "Choose another output folder"),
    ],
)
def test_bad_input(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], extra: tuple[str, ...], code: int, message: str
) -> None:
    assert train_tool.main([*words(data, tmp_path), *extra]) == code
    error = capfd.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_no_model_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    assert train_tool.main([]) == 2
    assert "-n yolox_nano" in capfd.readouterr().err


def report_of(out: Path) -> str:
    return (out / "yolox_nano" / "report.html").read_text(encoding="utf-8")


def test_report_of_a_resumed_run_still_shows_the_best_epoch(
    finished: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished, tmp_path / "out")
    assert "Of epoch 2, 4 images." in report_of(finished)  # the first of two evaluations without any match
    assert train_tool.main([*words(data, tmp_path / "out", "--resume"), "max_epoch", "6"]) == 0
    page = report_of(tmp_path / "out")
    assert "6 of 6 epochs, 18 steps of 4 images" in page
    best = max(rows(tmp_path / "out"), key=lambda row: row.get("val/AP", -1.0))
    assert f"{best['val/AP']:.4f} (AP50" in page
    assert f"Of epoch {best['epoch']:.0f}, 4 images." in page
    assert "report.html" in capsys.readouterr().out
