"""Ray and Spark: plain functions on clusters of this machine, and every way to fail there."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from yolox.cpu.machine import pretend_machine
from yolox.errors import DataError, UsageError
from yolox.processes.spark_context import first_reason
from yolox.trainer.launchers.agent import interface_of
from yolox.trainer.launchers.base import Launcher, RankError, Slot, Worker
from yolox.trainer.launchers.heartbeat import HangLimits
from yolox.trainer.launchers.protocol import Registration
from yolox.trainer.launchers.ray_actors import RayLauncher, share_nodes
from yolox.trainer.launchers.remote import place_ranks
from yolox.trainer.launchers.spark_barrier import SparkLauncher

processes = pytest.mark.processes
ROOT = Path(__file__).resolve().parents[2]
SLOTS = (Slot(0, 2, (), 0), Slot(1, 2, (), 0))
BIG = pretend_machine(2, 28)


def started_here(mark: str) -> list[str]:
    """Command lines of all processes that inherited a variable, except this one."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command, variables = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
        except OSError:
            continue
        if mark.encode() in variables.split(b"\0") and int(entry.name) != os.getpid():
            found.append(command.decode(errors="replace").replace("\0", " "))
    return found


def workers_left() -> list[str]:
    """Workers of this session that are still there after a while."""
    deadline = time.monotonic() + 5
    while True:
        left = [command for command in started_here(f"YOLOX_TEST_RUN={os.getpid()}") if "yolox-run-" in command]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.1)


@pytest.fixture(params=["ray", "spark"])
def launcher(request: pytest.FixtureRequest) -> Launcher:
    # where nothing hangs, a busy machine may keep a rank from its core for longer than that
    limits = HangLimits(step=3) if "hang" in request.node.name else HangLimits()
    if request.param == "ray":
        return RayLauncher(request.getfixturevalue("ray_cluster").address, limits)
    request.getfixturevalue("spark_context")
    return SparkLauncher(limits=limits)


def meet(worker: Worker) -> None:
    import torch.distributed as dist

    slot = worker.slot
    dist.init_process_group("gloo", init_method=worker.rendezvous, rank=slot.rank, world_size=slot.world)


def add(worker: Worker) -> tuple[int, float, int, int, int, str]:
    import torch
    import torch.distributed as dist

    meet(worker)
    total = torch.tensor([float(worker.slot.rank + 1)])
    dist.all_reduce(total)
    dist.destroy_process_group()
    os.write(1, f"rank {worker.slot.rank} speaks\n".encode())
    place = worker.local_rank, worker.node_rank
    return worker.slot.rank, float(total), torch.get_num_threads(), *place, os.getcwd()


@processes
def test_ranks_meet_where_the_run_was_started(
    launcher: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    here = str(tmp_path)
    assert launcher.run(add, SLOTS) == [(0, 3.0, 1, 0, 0, here), (1, 3.0, 1, 1, 0, here)]
    out = capfd.readouterr().out
    assert "rank 0 speaks" in out
    assert "rank 1 speaks" not in out
    assert not workers_left()


def fails(how: str) -> Callable[[Worker], None]:
    def work(worker: Worker) -> None:
        import torch
        import torch.distributed as dist

        meet(worker)
        worker.beat("step")
        if worker.slot.rank == 1:
            if how == "data":
                raise DataError("got no folder '/data/images', expected one")
            if how == "memory":
                raise MemoryError
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "lost":
                os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(1000)
        dist.all_reduce(torch.ones(1))

    return work


@processes
@pytest.mark.parametrize(
    ("launcher", "how", "kind", "part"),
    [
        ("ray", "memory", "raised", "MemoryError"),  # the same code with Spark, as for the next one
        ("ray", "hang", "hangs", "in work"),
        ("ray", "kill", "killed", "SIGKILL"),
        ("ray", "lost", "lost", "our process there is gone"),
        ("spark", "kill", "killed", "SIGKILL"),
        ("spark", "lost", "lost", "our process there is gone"),
    ],
    indirect=["launcher"],
)
def test_one_rank_that_fails_stops_all(launcher: Launcher, how: str, kind: str, part: str) -> None:
    with pytest.raises(RankError, match=part) as caught:
        launcher.run(fails(how), SLOTS)
    assert caught.value.rank == 1
    assert caught.value.kind == kind
    assert "on " in caught.value.summary
    assert not workers_left()


@processes
def test_data_that_only_some_nodes_have(launcher: Launcher) -> None:
    with pytest.raises(DataError, match=r"on .*(Ray node|Spark executor) .*: got no folder '/data/images'") as caught:
        launcher.run(fails("data"), SLOTS)
    assert isinstance(caught.value.__cause__, RankError)
    assert caught.value.__cause__.rank == 1


@processes
def test_a_ray_node_that_disappears(ray_cluster: Any) -> None:
    node = ray_cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)

    def work(worker: Worker) -> None:
        Path(f"/tmp/yolox-node-{worker.slot.rank}-{parent}").write_text(str(os.getppid()))
        time.sleep(1000)

    import threading

    parent = os.getpid()
    files = [Path(f"/tmp/yolox-node-{rank}-{parent}") for rank in range(3)]

    def remove() -> None:
        while not all(file.exists() for file in files):
            time.sleep(0.1)
        ray_cluster.remove_node(node, allow_graceful=False)

    thread = threading.Thread(target=remove)
    thread.start()
    try:
        with pytest.raises(RankError, match=r"is gone: .*Ray node") as caught:
            RayLauncher(ray_cluster.address).run(work, tuple(Slot(rank, 3, (), 0) for rank in range(3)))
    finally:
        thread.join()
        for file in files:
            file.unlink()
    assert caught.value.kind == "lost"
    assert not workers_left()
    import ray

    ray.init(address=ray_cluster.address, logging_level=logging.ERROR, log_to_driver=False)
    deadline = time.monotonic() + 60  # Ray notices later; until then it would send the next test's ranks there
    while sum(item["Alive"] for item in ray.nodes()) > 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    ray.shutdown()


@processes
def test_a_ray_that_was_there_before_stays(ray_cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setenv("RAY_ADDRESS", ray_cluster.address)
    assert [result[0] for result in RayLauncher().run(add, SLOTS)] == [0, 1]
    assert not ray.is_initialized(), "it was joined for the run"
    ray.init(address=ray_cluster.address, log_to_driver=False)
    try:

        def inside() -> tuple[list[Any], bool, bool]:
            streams = sys.stdout, sys.stderr
            os.environ["RAY_ADDRESS"] = "ray://nowhere:10001"  # is not asked for: this process is in a cluster
            results = RayLauncher().run(lambda worker: worker.slot.rank, SLOTS)
            return results, (sys.stdout, sys.stderr) == streams, ray.is_initialized()

        results, same_streams, alive = ray.get(ray.remote(inside).options(num_cpus=0).remote())
        assert results == [0, 1]
        assert same_streams
        assert alive
        assert ray.is_initialized()
    finally:
        ray.shutdown()


OWN = """
import sys, time
sys.path.insert(0, {tests!r})
from test_clusters import started_here
from yolox.trainer.launchers.base import Slot
from yolox.trainer.launchers.{module} import {name}
def work(worker):
    return worker.slot.rank, worker.slot.threads > 0
print("results", {name}().run(work, [Slot(0, 2, (), 0), Slot(1, 2, (), 0)]))
deadline = time.monotonic() + 10
while started_here("MARK=own") and time.monotonic() < deadline:
    time.sleep(0.1)
print("left", started_here("MARK=own"))
"""


@processes
@pytest.mark.parametrize(("module", "name"), [("ray_actors", "RayLauncher"), ("spark_barrier", "SparkLauncher")])
def test_an_engine_of_its_own_leaves_nothing(module: str, name: str) -> None:
    """Without a cluster the launcher starts one; nothing of it is left when it returns."""
    pytest.importorskip({"ray_actors": "ray", "spark_barrier": "pyspark"}[module])
    script = OWN.format(module=module, name=name, tests=str(Path(__file__).parent))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYSPARK_"))}
    environment.update(PYTHONPATH=str(ROOT), MARK="own")
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=180, check=False
    )
    if "Java (Spark runs on it) is not installed" in done.stderr:
        pytest.skip("Spark needs Java, and there is none")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "results [(0, True), (1, True)]" in done.stdout
    assert done.stdout.strip().endswith("left []")


def registration(number: int, identity: str, ranks: int = 1, threads: int | None = None) -> Registration:
    return Registration(number, f"label {number}", identity, BIG, ranks, threads)


def test_ranks_of_a_machine_are_neighbours_and_share_its_cores() -> None:
    registrations = [registration(0, "a"), registration(1, "b"), registration(2, "a"), registration(3, "b")]
    places = place_ranks(registrations, [Slot(rank, 4, (), 0) for rank in range(4)], home="b", rendezvous="tcp://b:1")
    assert [places[number].slots[0].rank for number in (1, 3, 0, 2)] == [0, 1, 2, 3]
    assert [places[number].first_local_rank for number in (1, 3, 0, 2)] == [0, 1, 0, 1]
    assert [places[number].node_rank for number in (1, 3, 0, 2)] == [0, 0, 1, 1]
    assert {place.slots[0].threads for place in places.values()} == {28}


def test_threads_are_limited_by_the_engine_and_the_user() -> None:
    places = place_ranks(
        [registration(0, "a", 2, 8), registration(1, "b", 1, 8)], [Slot(rank, 3, (), 0) for rank in range(3)], "a", ""
    )
    assert [slot.threads for place in places.values() for slot in place.slots] == [4, 4, 8]
    places = place_ranks([registration(0, "a", 2, 8)], [Slot(rank, 2, (), 3) for rank in range(2)], "a", "")
    assert [slot.threads for slot in places[0].slots] == [3, 3]


def test_ray_nodes_get_ranks_for_their_cpus() -> None:
    assert share_nodes({"far": 8.0, "own": 8.0, "head": 0.0}, 4, "own") == {"own": 2, "far": 2}
    assert share_nodes({"small": 2.0, "own": 6.0}, 4, "own") == {"own": 3, "small": 1}
    assert share_nodes({"far": 8.0, "own": 1.0}, 1, "own") == {"own": 1}
    assert share_nodes({"far": 1.0, "near": 1.0}, 5, "none") == {"far": 3, "near": 2}
    with pytest.raises(UsageError, match="none of the 1 nodes"):
        share_nodes({"head": 0.0}, 2, "head")


def test_addresses_that_cannot_be_meant() -> None:
    pytest.importorskip("ray")
    with pytest.raises(UsageError, match="Ray Client"):
        RayLauncher("ray://10.0.0.1:10001").run(add, SLOTS)


def test_the_reason_in_a_spark_error() -> None:
    text = (
        "An error occurred while calling z:PythonRDD.collectAndServe.\n: org.apache.spark.SparkException: Job aborted\n"
        "org.apache.spark.api.python.PythonException: Traceback (most recent call last):\n"
        "ModuleNotFoundError: No module named 'yolox'\n\tat java.lang.Thread.run\n"
    )
    reason = first_reason(text)
    assert reason.startswith("ModuleNotFoundError: No module named 'yolox'")
    assert "PYSPARK_PYTHON" in reason
    assert first_reason("") == "Spark gave no reason"


def test_the_interface_of_an_address() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.7") is None
