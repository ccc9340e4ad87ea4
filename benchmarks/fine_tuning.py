"""``python -m benchmarks.fine_tuning``: AP while published weights are fine-tuned with default settings."""

from __future__ import annotations

import csv
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.protocol import REAL_DATA, Part, native_precisions, run_benchmark
from yolox.data.sample_dataset import draw_sample_set
from yolox.errors import DataError
from yolox.experiments import get_experiment
from yolox.files import write_text
from yolox.models.detector import build_detector
from yolox.tools import train

ABOUT = "AP on the validation images while published YOLOX-Nano weights are fine-tuned with default settings."
SPLITS = ("train", "val")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["draw"]:
        draw(Path(words[1]), Path(words[2]))
        return 0
    parts = {"40-images-3-classes": partial(_measure, 40, 3), "128-images": partial(_measure, 128, 80)}
    return run_benchmark("fine_tuning", ABOUT, parts, words)


def draw(results: Path, picture: Path) -> None:
    """Draw AP over the epochs, a diagram for each part of a result file and each number of epochs."""
    from matplotlib.figure import Figure

    parts = json.loads(results.read_text(encoding="utf-8"))["parts"]
    lengths = sorted({row["epochs"] for part in parts.values() for row in part["rows"]})
    figure = Figure(figsize=(4.5 * len(lengths), 2.9 * len(parts)), layout="constrained")
    grid = figure.subplots(len(parts), len(lengths), squeeze=False)
    for axes_row, (name, part) in zip(grid, parts.items(), strict=True):
        for axes, epochs in zip(axes_row, lengths, strict=True):
            rows = [row for row in part["rows"] if row["epochs"] == epochs]
            for row in rows:
                axes.plot(
                    [int(epoch) for epoch in row["AP"]],
                    list(row["AP"].values()),
                    label={"32": "fp32"}.get(row["precision"], row["precision"]),
                )
            axes.axhline(rows[0]["start"], color="grey", linestyle=":", label="start")
            axes.set(
                title=f"{name.replace('-images-', '-images, ').replace('-', ' ')}, {epochs} epochs",
                xlabel="epoch",
                ylabel="AP",
            )
            low, high = axes.get_ylim()
            middle = (low + high) / 2
            axes.set_ylim(min(low, middle - 0.04), max(high, middle + 0.04))  # noise must not look like mountains
            axes.grid(alpha=0.3)
            axes.legend()
    figure.savefig(picture, dpi=110)


def choose_images(data: Path, target: Path, num_images: int, num_classes: int) -> list[str]:
    """Write labels of the most frequent classes and the first training images that show them; return overrides.

    Args:
        data: A COCO data set; its images stay where they are.
        target: The folder of the labels.
        num_images: Training images. Of the validation images all that show the classes are taken.
        num_classes: Classes with the most training objects.

    Returns:
        Words that make a training use the labels.
    """
    counts: Counter[int] = Counter()
    chosen: set[int] = set()
    words = []
    for split in SPLITS:
        content = json.loads((data / "annotations" / f"instances_{split}2017.json").read_text(encoding="utf-8"))
        if split == "train":
            counts = Counter(item["category_id"] for item in content["annotations"])
            chosen = {category for category, _ in counts.most_common(num_classes)}
        shown = [item for item in content["annotations"] if item["category_id"] in chosen]
        with_objects = {item["image_id"] for item in shown}
        images = [image for image in content["images"] if image["id"] in with_objects or num_classes >= len(counts)]
        images = images[:num_images] if split == "train" else images
        kept = {image["id"] for image in images}
        content["images"] = images
        content["annotations"] = [item for item in shown if item["image_id"] in kept]
        if num_classes < len(counts):
            content["categories"] = [item for item in content["categories"] if item["id"] in chosen]
        write_text(target / f"{split}.json", json.dumps(content))
        words += [f"{split}_ann", str(target / f"{split}.json"), f"{split}_images", str(data / f"{split}2017")]
    return words


def ap_by_epoch(words: Sequence[str], folder: Path) -> dict[int, float]:
    """Train with the words of a command line; return AP by epoch, that of the weights of the start as epoch 0.

    Raises:
        DataError: When the training fails.
    """
    if train.main([*words, "-expn", "run", "--output_dir", str(folder), "--logger", "none"]) != 0:
        raise DataError(f"the training {' '.join(words)} failed; its message is above.")
    with (folder / "run" / "results.csv").open(encoding="utf-8") as file:
        return {int(row["epoch"]): float(row["val/AP"]) for row in csv.DictReader(file) if row.get("val/AP")}


def _measure(num_images: int, num_classes: int, quick: bool) -> Part:
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="benchmark-fine-tuning-") as name:
        folder = Path(name)
        words = _quick(folder) if quick else _published()
        data = folder / "data" if quick else REAL_DATA / "coco_mini"
        words += ["--data_dir", str(data), *choose_images(data, folder, num_images, num_classes)]
        for precision in ("32",) if quick else native_precisions():
            for epochs in (1,) if quick else (6, 60):
                given = ["--precision", precision, "--eval_interval", "1", "max_epoch", str(epochs)]
                rows.append(_row(precision, epochs, ap_by_epoch([*words, *given], folder / f"{precision}-{epochs}")))
        num_val = len(json.loads((folder / "val.json").read_text(encoding="utf-8"))["images"])
    columns = {
        "precision": "{precision}",
        "epochs": "{epochs}",
        "AP of the start": "{start:.3f}",
        "lowest": "{lowest:.3f}",
        "end": "{end:.3f}",
        "best": "{best:.3f}",
        "AP at 0, a twelfth, ... of the epochs": "{shown}",
    }
    note = f"Evaluated on {num_val} validation images that show the classes; batch 64."
    return Part(rows, columns, {"images": num_images, "classes": num_classes}, [note])


def _row(precision: str, epochs: int, ap: dict[int, float]) -> dict[str, Any]:
    values = list(ap.values())
    shown = " ".join(f"{value:.3f}" for value in values[:: max(1, epochs // 12)])
    extremes = {"start": ap[0], "lowest": min(values), "end": values[-1], "best": max(values)}
    return {"precision": precision, "epochs": epochs, **extremes, "AP": ap, "shown": shown}


def _published() -> list[str]:
    weights = REAL_DATA / "weights" / "yolox_nano.pth"
    if not weights.is_file():
        raise DataError(f"no published weights in '{weights.parent}', which this benchmark fine-tunes.")
    return ["-n", "yolox_nano", "-c", str(weights), "-b", "64"]


def _quick(folder: Path) -> list[str]:
    """Return options of a training that shows that the benchmark works: fresh weights on a few drawn images."""
    draw_sample_set(folder / "data", num_train=4, num_val=2)
    experiment = get_experiment("yolox_nano")
    torch.save({"model": build_detector(experiment.model).state_dict()}, folder / "fresh.pth")
    small = ["input_size", "64", "test_size", "64", "--no-multiscale", "--num_workers", "0"]
    return ["-n", "yolox_nano", "-c", str(folder / "fresh.pth"), "-b", "2", *small]


if __name__ == "__main__":
    sys.exit(main())
