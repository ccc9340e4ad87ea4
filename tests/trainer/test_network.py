"""A network between two machines that is cut, and one that is slow: the second machine is a network namespace."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from process_state import left

from yolox.trainer.launchers.base import RankError, Slot, Worker
from yolox.trainer.launchers.heartbeat import HangLimits
from yolox.trainer.launchers.protocol import JoinInfo
from yolox.trainer.launchers.remote import run_remote

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    *(pytest.mark.processes, pytest.mark.slow),
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and iproute2"),
]
NAME, HERE, THERE = "yolox-test", "10.213.7.1", "10.213.7.2"
AGENT = """
import pickle, sys
from yolox.trainer.launchers.agent import serve_node
serve_node(*pickle.load(sys.stdin.buffer))
"""
SLOTS = (Slot(0, 2, (), 1), Slot(1, 2, (), 1))


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@pytest.fixture
def cable() -> Iterator[str]:
    """A pair of interfaces between this namespace and another one, by the name of ours."""
    try:
        ip("netns", "add", NAME)
    except subprocess.CalledProcessError:
        pytest.skip("network namespaces cannot be made here")
    try:
        ip("link", "add", "yolox0", "type", "veth", "peer", "name", "yolox1", "netns", NAME)
        ip("addr", "add", f"{HERE}/24", "dev", "yolox0")
        ip("link", "set", "yolox0", "up")
        for words in (("addr", "add", f"{THERE}/24", "dev", "yolox1"), ("link", "set", "yolox1", "up")):
            ip("-n", NAME, *words)
        ip("-n", NAME, "link", "set", "lo", "up")
        yield "yolox0"
    finally:
        ip("link", "del", "yolox0")  # at once; with the namespace it goes a little later
        ip("netns", "del", NAME)


class TwoMachines:
    """An engine that starts an agent here, and one in the namespace under another host name."""

    host = HERE

    def __init__(self) -> None:
        self.agents: list[subprocess.Popen[bytes]] = []

    def start(self, join_info: JoinInfo, world: int) -> None:
        elsewhere = ["ip", "netns", "exec", NAME, "unshare", "--uts", "sh", "-c", 'hostname there; exec "$@"', "sh"]
        for number, before in enumerate(([], elsewhere)):
            command = [*before, sys.executable, "-c", AGENT]
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            agent = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)
            assert agent.stdin is not None
            pickle.dump((join_info, number, ("here", "there")[number], 1, None), agent.stdin)
            agent.stdin.close()
            self.agents.append(agent)

    def trouble(self) -> str | None:
        return None

    def wait(self, seconds: float) -> None:
        for agent in self.agents:
            agent.wait(seconds)


def sums(folder: Path, times: int, numbers: int) -> Callable[[Worker], float]:
    """Return work for ranks: sums over both machines, after each of which the number of sums is written down."""

    def work(worker: Worker) -> float:
        import torch
        import torch.distributed as dist

        slot = worker.slot
        dist.init_process_group("gloo", init_method=worker.rendezvous, rank=slot.rank, world_size=slot.world)
        total = 0.0
        for step in range(times):
            worker.beat("step")
            part = torch.full((numbers,), float(slot.rank + 1))
            dist.all_reduce(part)
            total += float(part[0])
            (folder / f"rank-{slot.rank}").write_text(f"{os.getpid()} {step}")
            time.sleep(0.01)
        return total

    return work


def test_a_cable_that_is_cut(cable: str, tmp_path: Path) -> None:
    engine, cut_at = TwoMachines(), [0.0]

    def cut() -> None:
        while not all((tmp_path / f"rank-{rank}").exists() for rank in (0, 1)):
            time.sleep(0.05)
        time.sleep(1)
        cut_at[0] = time.monotonic()
        ip("link", "set", cable, "down")

    thread = threading.Thread(target=cut)
    thread.start()
    with pytest.raises(RankError, match="there has been silent") as caught:
        run_remote(engine, sums(tmp_path, 1_000_000, 10), SLOTS, HangLimits(step=60))
    elapsed = time.monotonic() - cut_at[0]
    thread.join()
    sys.stdout.write(f"the error came {elapsed:.1f} s after the cut\n")
    assert (caught.value.rank, caught.value.kind) == (1, "lost")
    assert elapsed < 15
    engine.wait(40)  # the machine that was cut off ends its ranks by itself
    pids = [int((tmp_path / f"rank-{rank}").read_text().split()[0]) for rank in (0, 1)]
    assert not left(pids)


def test_a_slow_cable(cable: str, tmp_path: Path) -> None:
    """200 kbit/s: a sum of 40 kB takes seconds, as does the run itself on its way to the other machine."""
    if shutil.which("tc") is None:
        pytest.skip("needs tc")
    words = ["rate", "200kbit", "burst", "16kb", "latency", "5s"]
    subprocess.run(["tc", "qdisc", "add", "dev", cable, "root", "tbf", *words], check=True)
    engine = TwoMachines()
    started = time.monotonic()
    assert run_remote(engine, sums(tmp_path, 5, 10_000), SLOTS, HangLimits(step=60)) == [15.0, 15.0]
    assert time.monotonic() - started > 5, "the cable was slow"
    engine.wait(10)
