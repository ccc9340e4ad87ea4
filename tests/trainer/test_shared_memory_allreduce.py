"""Sums in shared memory equal those of all_reduce, whichever rank comes late, and leave nothing behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from yolox.trainer.launchers.base import Slot, Worker
from yolox.trainer.launchers.popen import PopenLauncher

pytestmark = pytest.mark.processes
RANKS = 3


def _run(work: Any) -> list[Any]:
    before = set(Path("/dev/shm").glob("yolox-sums-*"))
    results = PopenLauncher().run(work, [Slot(rank, RANKS) for rank in range(RANKS)])
    assert set(Path("/dev/shm").glob("yolox-sums-*")) <= before, "memory was left behind"
    return results


def test_sums_equal_those_of_all_reduce() -> None:
    def work(worker: Worker) -> Any:
        import random
        import time

        import torch
        import torch.distributed as dist

        from yolox.trainer import shared_memory_allreduce as allreduce

        rank, method = worker.slot.rank, worker.rendezvous
        dist.init_process_group("gloo", init_method=method, rank=rank, world_size=worker.slot.world)
        sizes, delays = random.Random(0), random.Random(rank)
        generator = torch.Generator().manual_seed(rank)
        results = []
        for message in range(600):
            length = allreduce.CAPACITY + 1 if message == 300 else sizes.randint(1, 2000)
            mine = torch.rand(length, generator=generator, dtype=torch.float64)
            expected = mine.clone()
            dist.all_reduce(expected)
            if delays.random() < 0.05:
                time.sleep(0.003)
            allreduce.sum_over_ranks(mine)
            torch.testing.assert_close(mine, expected)
            results.append(mine)
        shared = [memory is not None for memory in allreduce._tables_of.values()]
        dist.destroy_process_group()
        return [result.numpy().tobytes() for result in results], shared

    ranks = _run(work)
    assert ranks[0][0] == ranks[1][0] == ranks[2][0]  # not only close: the ranks must not drift apart
    assert all(shared == [True] for _, shared in ranks)


@pytest.mark.parametrize("missing", ["memory", "one rank's way to it"])
def test_without_common_memory_the_ranks_send_messages(missing: str) -> None:
    def work(worker: Worker) -> Any:
        import torch
        import torch.distributed as dist

        from yolox.trainer import shared_memory_allreduce as allreduce

        rank, method = worker.slot.rank, worker.rendezvous
        dist.init_process_group("gloo", init_method=method, rank=rank, world_size=worker.slot.world)
        if missing == "memory":
            allreduce._create = lambda folder, size: None
        elif rank == 2:
            allreduce._open = lambda path, size: None
        sums = torch.full((4,), rank + 1.0, dtype=torch.float64)
        allreduce.sum_over_ranks(sums)
        tables = list(allreduce._tables_of.values())
        dist.destroy_process_group()
        return sums.tolist(), tables

    assert _run(work) == [([6.0] * 4, [None])] * RANKS


def test_every_process_group_has_its_own(tmp_path: Path) -> None:
    meeting = f"file://{tmp_path}/group"

    def work(worker: Worker) -> Any:
        import torch
        import torch.distributed as dist

        from yolox.trainer import shared_memory_allreduce as allreduce

        rank, world = worker.slot.rank, worker.slot.world
        results = []
        for attempt in range(2):
            dist.init_process_group("gloo", init_method=f"{meeting}{attempt}", rank=rank, world_size=world)
            sums = torch.full((2,), rank + attempt, dtype=torch.float64)
            allreduce.sum_over_ranks(sums)
            results.append(sums.tolist())
            dist.destroy_process_group()
        return results

    assert _run(work) == [[[3.0, 3.0], [6.0, 6.0]]] * RANKS
