"""Ranks killed at random moments: the right one is named, the run ends at once, and nothing is left behind."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from process_state import left
from tiny import QUIET, TinyModule, make_loader, make_trainer
from torch import Tensor

from yolox.trainer.launchers.base import RankError

pytestmark = [pytest.mark.processes, pytest.mark.slow, *QUIET]
KILLS = 8
"""With each of five ways to start the ranks: 40 in all."""
WORLD = 2
LAST_SECONDS = 10
SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = {tests!r}
import torch
from test_kills import Slow
from tiny import make_loader, make_trainer

torch.manual_seed(7)
make_trainer({folder!r}, max_epochs=10_000).fit(Slow(Path({folder!r})), make_loader())
"""


class Slow(TinyModule):
    """Writes down which process is which rank, and trains without using a whole core."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        (self.folder / f"rank-{self.global_rank}").write_text(str(os.getpid()))
        time.sleep(0.02)
        return super().training_step(batch, batch_idx)


def kill_later(folder: Path, victim: int, delay: float, seen: dict[str, Any]) -> None:
    """Wait until all ranks train, then a little, then kill one."""
    files = [folder / f"rank-{rank}" for rank in range(WORLD)]
    while not all(file.exists() and file.read_text() for file in files):
        time.sleep(0.01)
    time.sleep(delay)
    seen["pids"] = [int(file.read_text()) for file in files]
    seen["at"] = time.monotonic()
    os.kill(seen["pids"][victim], signal.SIGKILL)


def report(backend: str, seconds: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        figures = f"{len(seconds)} kills, ended after {min(seconds):.1f} to {max(seconds):.1f} s"
        sys.stdout.write(f"\n{backend}: {figures}\n")
    assert max(seconds) < LAST_SECONDS


@pytest.mark.parametrize("backend", ["subprocess", "spawn", "ray", "spark"])
def test_random_ranks_are_killed(
    backend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    settings: dict[str, Any] = {"num_processes": WORLD, "max_epochs": 10_000, "distributed_backend": backend}
    if backend == "ray":
        settings["cluster"] = request.getfixturevalue("ray_cluster").address
    elif backend == "spark":
        request.getfixturevalue("spark_context")
    rng = random.Random(backend)
    seconds = []
    for number in range(KILLS):
        folder = tmp_path / str(number)
        folder.mkdir()
        victim, seen = rng.randrange(WORLD), dict[str, Any]()
        killer = threading.Thread(target=kill_later, args=(folder, victim, rng.random(), seen))
        killer.start()
        torch.manual_seed(7)
        trainer = make_trainer(folder, **settings)
        with pytest.raises(RankError, match="SIGKILL") as caught:
            trainer.fit(Slow(folder), make_loader())
        seconds.append(time.monotonic() - seen["at"])
        killer.join()
        assert caught.value.rank == victim
        assert caught.value.kind == "killed"
        assert not left(seen["pids"])
    report(backend, seconds, capsys)


def test_random_ranks_of_torchrun_are_killed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random("torchrun")
    seconds = []
    for number in range(KILLS):
        folder = tmp_path / str(number)
        folder.mkdir()
        script = folder / "train.py"
        script.write_text(SCRIPT.format(tests=sys.path, folder=str(folder)))
        victim, seen = rng.randrange(WORLD), dict[str, Any]()
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc_per_node={WORLD}",
            str(script),
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            kill_later(folder, victim, rng.random(), seen)
            output, _ = process.communicate(timeout=60)
        seconds.append(time.monotonic() - seen["at"])
        assert process.returncode == 1
        root_cause = output.rpartition("Root Cause")[2]
        assert re.search(rf"rank\s*: {victim} ", root_cause), output
        assert "SIGKILL" in root_cause
        assert not left(seen["pids"])
    report("torchrun", seconds, capsys)
