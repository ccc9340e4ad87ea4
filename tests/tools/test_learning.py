"""It learns: whole trainings to an AP, minutes each (``make slow``)."""

from __future__ import annotations

import csv
import subprocess
from pathlib import Path

import pytest

from yolox.tools import train as train_tool

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning:pytorch_lightning", "ignore::FutureWarning:pytorch_lightning"),
]


def best(folder: Path, key: str) -> float:
    with (folder / "results.csv").open() as file:
        return max(float(row[key]) for row in csv.DictReader(file) if row.get(key))


@pytest.mark.realdata
@pytest.mark.parametrize(
    "settings",
    ["--precision 32", "--precision bf16", "--precision bf16 --num_processes 2 --sync_bn"],
)
def test_published_weights_learn_the_small_set(
    settings: str, nano_weights: Path, coco_mini: Path, tmp_path: Path
) -> None:
    """From AP 0.33 on its 128 training images to 0.55 and more in 100 epochs."""
    command = ["-n", "yolox_nano", "-expn", "learn", "-c", str(nano_weights), "--data_dir", str(coco_mini), "-b", "8"]
    command += [*settings.split(), "--output_dir", str(tmp_path), "--logger", "none"]
    recipe = ["max_epoch", "100", "warmup_epochs", "2", "mosaic_prob", "0.2", "random_size", "12,14"]
    same_images = ["val_ann", "annotations/instances_train2017.json", "val_images", "train2017"]
    assert train_tool.main([*command, *recipe, "basic_lr_per_img", "0.0006", "eval_interval", "20", *same_images]) == 0
    assert best(tmp_path / "learn", "val/AP") >= 0.55


def test_from_scratch_on_the_sample_set(tmp_path: Path) -> None:
    """The training of ``make demo``, which is a shorter one where the processor has no arithmetic for bf16."""
    root = Path(__file__).resolve().parents[2]
    said = subprocess.run(["make", "-n", "demo"], cwd=root, capture_output=True, text=True, check=True).stdout
    line = next(row for row in said.splitlines() if "yolox.tools.train" in row)
    words = line.split("yolox.tools.train")[1].split()
    assert train_tool.main([*words, "--output_dir", str(tmp_path), "--logger", "none"]) == 0
    assert best(tmp_path / "demo", "val/AP50") >= (0.90 if "bf16" in words else 0.88)
