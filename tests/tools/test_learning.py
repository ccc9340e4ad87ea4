"""It learns: whole trainings to an AP, minutes each (``make slow``)."""

from __future__ import annotations

import csv
import subprocess
from pathlib import Path

import pytest

from benchmarks.fine_tuning import ap_by_epoch, choose_images
from benchmarks.protocol import native_precisions
from yolox.data.sample_dataset import draw_sample_set
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
    """From AP 0.33 on its 128 training images to 0.58 and more in 40 epochs, and never below the start on the way."""
    command = ["-n", "yolox_nano", "-expn", "learn", "-c", str(nano_weights), "--data_dir", str(coco_mini), "-b", "8"]
    command += [*settings.split(), "--output_dir", str(tmp_path), "--logger", "none"]
    recipe = ["max_epoch", "40", "mosaic_prob", "0.2", "random_size", "12,14"]
    same_images = ["val_ann", "annotations/instances_train2017.json", "val_images", "train2017"]
    assert train_tool.main([*command, *recipe, "basic_lr_per_img", "0.00005", "eval_interval", "4", *same_images]) == 0
    with (tmp_path / "learn" / "results.csv").open() as file:
        ap = [float(row["val/AP"]) for row in csv.DictReader(file) if row.get("val/AP")]
    assert min(ap) >= ap[0] - 0.02
    assert ap[-1] >= 0.58


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("num_images", "num_classes"),
    [(40, 3), (128, 80)],
)
@pytest.mark.parametrize("precision", native_precisions())
def test_default_settings_keep_what_published_weights_know(
    precision: str, num_images: int, num_classes: int, nano_weights: Path, coco_mini: Path, tmp_path: Path
) -> None:
    """Six epochs on few images: no evaluation is more than noise below that of the start."""
    labels = choose_images(coco_mini, tmp_path, num_images, num_classes)
    words = ["-n", "yolox_nano", "-c", str(nano_weights), "--data_dir", str(coco_mini), "--precision", precision]
    ap = ap_by_epoch([*words, *labels, "--eval_interval", "1", "max_epoch", "6"], tmp_path / "runs")
    assert sorted(ap) == list(range(7))
    assert min(ap.values()) >= ap[0] - 0.02


@pytest.mark.realdata
def test_all_precisions_train_to_the_same_ap(nano_weights: Path, tmp_path: Path) -> None:
    """Six drawn classes learnt from published weights, evaluated on the training images."""
    draw_sample_set(tmp_path / "data", num_train=40, num_val=2)
    words = ["-n", "yolox_nano", "-c", str(nano_weights), "--data_dir", str(tmp_path / "data"), "--logger", "none"]
    words += ["-b", "8", "--no-multiscale", "--eval_interval", "20", "--output_dir", str(tmp_path)]
    recipe = ["input_size", "128", "test_size", "128", "max_epoch", "20"]
    recipe += ["val_ann", "annotations/instances_train2017.json", "val_images", "train2017"]
    ap: dict[str, float] = {}
    for precision in ("64", "32", "bf16", "16"):
        assert train_tool.main([*words, "-expn", precision, "--precision", precision, *recipe]) == 0
        ap[precision] = best(tmp_path / precision, "val/AP")
    assert ap["32"] > 0.3
    assert ap["64"] == pytest.approx(ap["32"], abs=0.03)
    assert ap["bf16"] == pytest.approx(ap["32"], abs=0.05)
    assert ap["16"] == pytest.approx(ap["32"], abs=0.05)


LONG_RECIPE = {
    "bf16": "--precision bf16 test_size 320 random_size 7,9 max_epoch 180 no_aug_epochs 25 eval_interval 25",
    "32": "--precision 32 test_size 288 random_size 6,9 max_epoch 112 no_aug_epochs 6 eval_interval 40 hsv_prob 0 "
    "ema_time_constant 500",
}
LONG_RECIPE_COMMON = "input_size 256 warmup_epochs 3 basic_lr_per_img 0.0025 mosaic_scale 0.7,1.5 degrees 0 shear 0"


def test_the_training_of_make_demo(tmp_path: Path) -> None:
    """Some minutes from scratch to a detector whose boxes are worth drawing."""
    root = Path(__file__).resolve().parents[2]
    said = subprocess.run(["make", "-n", "demo"], cwd=root, capture_output=True, text=True, check=True).stdout
    line = next(row for row in said.splitlines() if "yolox.tools.train" in row)
    words = line.split("yolox.tools.train")[1].split()
    assert train_tool.main([*words, "--output_dir", str(tmp_path), "--logger", "none"]) == 0
    assert best(tmp_path / "demo", "val/AP50") >= 0.78


@pytest.mark.parametrize(("precision", "wanted"), [("bf16", 0.90), ("32", 0.88)])
def test_a_long_training_from_scratch_on_the_sample_set(precision: str, wanted: float, tmp_path: Path) -> None:
    """What ten minutes reach on two cores (``docs/decisions/0020``)."""
    words = [
        "-n",
        "yolox_nano",
        "-expn",
        "long",
        "-b",
        "8",
        *LONG_RECIPE_COMMON.split(),
        *LONG_RECIPE[precision].split(),
    ]
    assert train_tool.main([*words, "--output_dir", str(tmp_path), "--logger", "none"]) == 0
    assert best(tmp_path / "long", "val/AP50") >= wanted
