"""Launchers run plain functions: every way to end, without a model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from process_state import left

from yolox.errors import UsageError
from yolox.trainer.launchers import build_launcher
from yolox.trainer.launchers.base import RankError, Slot, Worker
from yolox.trainer.launchers.heartbeat import HangLimits
from yolox.trainer.launchers.popen import PopenLauncher

pytestmark = pytest.mark.processes
ROOT = Path(__file__).resolve().parents[2]
CPU = min(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
SLOTS = (Slot(0, 2, (CPU,), 1), Slot(1, 2, (CPU,), 1))


def no_worker_is_left() -> bool:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if not any(is_worker(entry) for entry in Path("/proc").glob("[0-9]*")):
            return True
        time.sleep(0.1)
    return False


def is_worker(process: Path) -> bool:
    """Whether a process is a living child of this one that serves a launcher."""
    try:
        state, parent = (process / "stat").read_text().rpartition(")")[2].split()[:2]
        command = (process / "cmdline").read_text()
    except OSError:
        return False
    return int(parent) == os.getpid() and state != "Z" and "yolox-run-" in command


def meet(worker: Worker) -> None:
    import torch.distributed as dist

    slot = worker.slot
    dist.init_process_group("gloo", init_method=worker.rendezvous, rank=slot.rank, world_size=slot.world)


def test_ranks_meet_and_sit_where_they_should(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ports and addresses of another launcher in the environment do not matter, even where the port is taken."""
    import socket

    def work(worker: Worker) -> Any:
        import torch
        import torch.distributed as dist

        meet(worker)
        total = torch.tensor([float(worker.slot.rank + 1)])
        dist.all_reduce(total)
        dist.destroy_process_group()
        return worker.slot.rank, float(total), sorted(os.sched_getaffinity(0)), torch.get_num_threads()

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        monkeypatch.setenv("KMP_AFFINITY", "granularity=fine,compact")
        before = dict(os.environ)
        results = build_launcher("subprocess", HangLimits()).run(work, SLOTS)
    assert results == [(0, 3.0, [CPU], 1), (1, 3.0, [CPU], 1)]
    assert dict(os.environ) == before
    assert no_worker_is_left()


def fails(how: str) -> Callable[[Worker], None]:
    def work(worker: Worker) -> None:
        import ctypes

        import torch
        import torch.distributed as dist

        meet(worker)
        worker.beat("step")
        if worker.slot.rank == 1:
            if how == "raise":
                raise ValueError("boom in rank 1")
            if how == "usage":
                raise UsageError("got 3, expected 4")
            if how == "memory":
                raise MemoryError
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "crash":
                ctypes.string_at(0)
            if how == "exit":
                sys.exit(143)
            time.sleep(1000)
        dist.all_reduce(torch.ones(1))

    return work


@pytest.mark.parametrize(
    ("how", "kind", "part"),
    [
        ("raise", "raised", "boom in rank 1"),
        ("memory", "raised", "MemoryError"),
        ("kill", "killed", "SIGKILL"),
        ("crash", "killed", "Segmentation fault"),
        ("hang", "hangs", "time.sleep"),
    ],
)
def test_one_rank_that_fails_stops_all(how: str, kind: str, part: str) -> None:
    part = {"time.sleep": "in work"}.get(part, part)  # the stack names the function it hangs in
    start = time.monotonic()
    with pytest.raises(RankError, match=part) as caught:
        PopenLauncher(HangLimits(step=3)).run(fails(how), SLOTS)
    assert caught.value.rank == 1
    assert caught.value.kind == kind
    assert time.monotonic() - start < 60, "includes the start of two interpreters on a busy machine"
    assert no_worker_is_left()


@pytest.mark.parametrize("how", ["raise", "kill", "exit"])
def test_ranks_leave_nothing_in_the_folders_for_temporary_files(how: str, tmp_path: Path) -> None:
    """Neither the folder of their sockets nor what they share in memory, whether they end in order or are killed."""

    def work(worker: Worker) -> None:
        from multiprocessing import util
        from multiprocessing.shared_memory import SharedMemory

        block = SharedMemory(create=True, size=16)
        (tmp_path / str(worker.slot.rank)).write_text(f"/dev/shm/{block.name}\n{util.get_temp_dir()}")
        fails(how)(worker)

    with pytest.raises((RankError, SystemExit)):
        PopenLauncher().run(work, SLOTS)
    made = [Path(line) for rank in "01" for line in (tmp_path / rank).read_text().splitlines()]
    assert len(made) == 4
    deadline = time.monotonic() + 30
    while any(path.exists() for path in made) and time.monotonic() < deadline:
        time.sleep(0.05)  # of a rank that has ended by itself, Python's other process removes it
    assert [path for path in made if path.exists()] == []


def test_mistakes_of_the_user_arrive_as_they_were() -> None:
    with pytest.raises(UsageError, match="got 3, expected 4") as caught:
        PopenLauncher().run(fails("usage"), SLOTS)
    assert isinstance(caught.value.__cause__, RankError)


def test_exit_codes_are_passed_on() -> None:
    with pytest.raises(SystemExit) as caught:
        PopenLauncher().run(fails("exit"), SLOTS)
    assert caught.value.code == 143


def test_no_worker_outlives_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, time\n"
        "from pathlib import Path\n"
        "from yolox.trainer.launchers.base import Slot\n"
        "from yolox.trainer.launchers.popen import PopenLauncher\n"
        f"folder = {str(tmp_path)!r}\n"
        "def work(worker):\n"
        "    Path(folder, f'pid-{worker.slot.rank}').write_text(str(os.getpid()))\n"
        "    time.sleep(1000)\n"
        "PopenLauncher().run(work, [Slot(0, 2), Slot(1, 2)])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, str(script)], env=environment) as parent:
        files = [tmp_path / "pid-0", tmp_path / "pid-1"]
        deadline = time.monotonic() + 60
        while not all(file.exists() and file.read_text() for file in files) and time.monotonic() < deadline:
            time.sleep(0.1)
        pids = [int(file.read_text()) for file in files]
        parent.kill()
    assert not left(pids, seconds=5)
