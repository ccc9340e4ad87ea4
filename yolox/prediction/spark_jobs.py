"""Spark: jobs that map partitions of images, a few at a time, so that results arrive while others are computed."""

from __future__ import annotations

import os
import uuid
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import Any

from yolox.cpu.machine import read_machine
from yolox.errors import YoloxError
from yolox.prediction.cluster_work import Answer, Work, split
from yolox.processes.spark_context import first_reason, spark_context

_ATTEMPTS = 4  # at a part on one machine, as on a cluster
_ROUNDS = 4  # parts of a job for each place
_JOBS = 2  # at once: the second fills the places that the end of the first leaves


def answers_of_spark(master: str | None, work: Work, items: Sequence[Any]) -> Generator[Answer]:
    """Yield the answers of all parts of ``items``, in their order.

    Args:
        master: See `spark_context`.
        work: Predicts one part.
        items: The images.

    Raises:
        UsageError: When there is no such cluster, or another SparkContext is active.
        YoloxError: When Spark gives up.
    """
    with spark_context(master, f"local[{read_machine().num_threads}]", attempts=_ATTEMPTS) as context:
        places = max(1, int(context.defaultParallelism))
        threads = int(context.getConf().get("spark.task.cpus", "1"))
        task = _Task(replace(work, threads=threads))
        parts = split(items, places, work.batch_size)
        group = f"yolox-{uuid.uuid4().hex}"
        with ThreadPoolExecutor(_JOBS) as pool:
            running: deque[Future[list[Answer]]] = deque()
            try:
                while job := list(islice(parts, _ROUNDS * places)):
                    running.append(pool.submit(_run, context, group, task, job))
                    if len(running) == _JOBS:
                        yield from running[0].result()
                        running.popleft()
                while running:
                    yield from running[0].result()
                    running.popleft()
            finally:
                if running:
                    with suppress(Exception):  # the JVM may be gone with the cluster
                        context.cancelJobGroup(group)


def _run(context: Any, group: str, task: _Task, parts: list[Sequence[Any]]) -> list[Answer]:
    """Run one job: a partition for each part.

    Raises:
        YoloxError: When it fails.
    """
    try:
        context.setJobGroup(group, "predictions by yolox")
        return list(context.parallelize(parts, len(parts)).mapPartitions(task).collect())
    except Exception as error:
        raise YoloxError(f"Spark gave up: {first_reason(str(error))}") from error


class _Task:
    """The work of a partition."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def __call__(self, parts: Iterable[Sequence[Any]]) -> Iterator[Answer]:
        os.environ.setdefault("OMP_NUM_THREADS", str(self._work.threads))
        return map(self._work, parts)
