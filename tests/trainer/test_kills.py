"""Ranks killed at random moments: the right one is named, the run ends at once, and nothing is left behind."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import QUIET, TinyModule, make_loader, make_trainer
from torch import Tensor

from yolox.trainer.launchers.base import RankError

pytestmark = [pytest.mark.processes, pytest.mark.slow, *QUIET]
KILLS = 20
WORLD = 2


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


def test_random_ranks_are_killed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(0)
    seconds = []
    for number in range(KILLS):
        folder = tmp_path / str(number)
        folder.mkdir()
        victim, seen = rng.randrange(WORLD), dict[str, Any]()
        killer = threading.Thread(target=kill_later, args=(folder, victim, rng.random(), seen))
        killer.start()
        torch.manual_seed(7)
        trainer = make_trainer(folder, num_processes=WORLD, max_epochs=10_000)
        with pytest.raises(RankError, match="SIGKILL") as caught:
            trainer.fit(Slow(folder), make_loader())
        seconds.append(time.monotonic() - seen["at"])
        killer.join()
        assert caught.value.rank == victim
        assert caught.value.kind == "killed"
        assert not [pid for pid in seen["pids"] if Path(f"/proc/{pid}").exists()]
    with capsys.disabled():
        sys.stdout.write(f"\n{KILLS} kills, ended after {min(seconds):.1f} to {max(seconds):.1f} s\n")
    assert max(seconds) < 10
