"""Spark: one barrier task for each rank, on a SparkContext that is active already or made for the run."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

from yolox.processes.spark_context import first_reason, spark_context
from yolox.trainer.launchers.agent import serve_node
from yolox.trainer.launchers.base import Slot, Worker
from yolox.trainer.launchers.heartbeat import HangLimits
from yolox.trainer.launchers.protocol import JoinInfo
from yolox.trainer.launchers.remote import run_remote

_END_SECONDS = 5.0
_REGISTER_SECONDS = 20.0  # for executors to come up before their number counts
_BARRIER = {"spark.scheduler.barrier.maxConcurrentTasksCheck.interval": "1s"}


class SparkLauncher:
    """Has the slots run as barrier tasks of a Spark application.

    An active SparkContext is used and left as it is. Else one is made for the run, with ``master``, with what
    ``spark-submit`` or its defaults say, or on this machine alone.

    Args:
        master: Address of a cluster, ``spark://host:7077``.
        limits: When a run that does nothing is taken to hang; None for never.
    """

    def __init__(self, master: str | None = None, limits: HangLimits | None = HangLimits()) -> None:  # noqa: B008 - frozen
        self.master = master
        self.limits = limits

    def run(self, function: Callable[[Worker], Any], slots: Sequence[Slot]) -> list[Any]:
        """Return the results by rank; see `Launcher`."""
        with spark_context(self.master, f"local[{len(slots)}]", _BARRIER) as context:
            engine = _Tasks(context)
            try:
                return run_remote(engine, function, slots, self.limits)
            finally:
                engine.close()


class _Tasks:
    """A job of barrier tasks that runs beside this thread."""

    def __init__(self, context: Any) -> None:
        self.context = context
        self.host = str(context.getConf().get("spark.driver.host"))
        self._group = f"yolox-{uuid.uuid4().hex}"
        self._thread: threading.Thread | None = None
        self._error: str | None = None
        self._world = 0
        self._began = time.monotonic()

    def start(self, join_info: JoinInfo, world: int) -> None:
        """Submit the job."""
        self._world, self._began = world, time.monotonic()
        threads = int(self.context.getConf().get("spark.task.cpus", "1"))
        task = _Task(join_info, threads if threads > 1 else None)
        self._thread = threading.Thread(target=self._submit, args=(task,), daemon=True)
        self._thread.start()

    def trouble(self) -> str | None:
        """Return why Spark gave the job up, or that it has too few places for it."""
        if self._error is not None:
            return self._error
        places = self.context.defaultParallelism
        if places < self._world and time.monotonic() - self._began > _REGISTER_SECONDS:
            return f"Spark at {self.context.master} runs {places} tasks at a time; ask for fewer processes"
        return None

    def close(self) -> None:
        """Wait a little for the tasks, which end with their connection, then cancel them."""
        if self._thread is None:
            return
        self._thread.join(_END_SECONDS)
        if self._thread.is_alive():
            with suppress(Exception):  # the JVM may be gone with the cluster
                self.context.cancelJobGroup(self._group)
            self._thread.join(_END_SECONDS)

    def _submit(self, task: _Task) -> None:
        try:
            self.context.setJobGroup(self._group, "training by yolox")
            places = self.context.parallelize(range(self._world), self._world)
            places.barrier().mapPartitions(task).collect()
        except Exception as error:  # noqa: BLE001 - whatever Spark raises is what it says
            self._error = first_reason(str(error))


class _Task:
    """The work of each barrier task."""

    def __init__(self, join_info: JoinInfo, threads: int | None) -> None:
        self.join_info = join_info
        self.threads = threads

    def __call__(self, _: Iterable[Any]) -> list[Any]:
        from pyspark import BarrierTaskContext

        context = BarrierTaskContext.get()
        number = context.partitionId()
        address = context.getTaskInfos()[number].address
        serve_node(self.join_info, number, f"Spark executor {address}", 1, self.threads)
        return []
