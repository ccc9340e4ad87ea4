"""Short runs of the training tool."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

SILENT = pytest.mark.filterwarnings("ignore::UserWarning:pytorch_lightning", "ignore::FutureWarning:pytorch_lightning")
SMALL = ("input_size", "64", "test_size", "64", "random_size", "2,3", "eval_interval", "2")
LENGTH = ("max_epoch", "4", "warmup_epochs", "1", "no_aug_epochs", "1")


def words(data: Path, out: Path, *more: str) -> list[str]:
    common = ["-n", "yolox_nano", "-b", "4", "--data_dir", str(data), "--output_dir", str(out), "--num_workers", "0"]
    return [*common, "--logger", "none", *more, *SMALL, *LENGTH]


def rows(out: Path) -> list[dict[str, float]]:
    with (out / "yolox_nano" / "results.csv").open() as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
