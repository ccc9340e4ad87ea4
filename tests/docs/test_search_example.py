"""The example of a search for settings, run as its page says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import described
from doc_pages import ROOT, blocks, commands
from doc_shell import check_pip

from yolox.config import apply_fields
from yolox.data.sample_dataset import CLASS_NAMES, draw_sample_set
from yolox.experiments import get_experiment

PAGE = "docs/tuning.md"
SHORTER = {"python": sys.executable, "/data/mine": "data", "yolox_nano": "start.pth", "20": "2", "30": "1"}


@pytest.mark.processes
def test_two_trials_and_a_third_later(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    draw_sample_set(tmp_path / "data", num_train=4, num_val=2)
    experiment = apply_fields(get_experiment("yolox_nano"), {"num_classes": len(CLASS_NAMES), "exp_name": "start"})
    torch.save(described(experiment, CLASS_NAMES), tmp_path / "start.pth")
    install, search = commands(blocks(PAGE, "bash")[0])
    check_pip(install)
    command = [SHORTER.get(word, word) for word in search]
    command[1] = str(ROOT / command[1])
    for trials, last in (([], 1), (["--trials", "1"], 2)):
        done = subprocess.run(
            [*command, "--size", "64", *trials],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert "best AP 0." in done.stdout
        assert (tmp_path / "search" / f"trial-{last}" / "report.html").exists()
