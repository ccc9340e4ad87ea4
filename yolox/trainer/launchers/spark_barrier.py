"""Spark: one barrier task for each rank, on a SparkContext that is active already or made for the run."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from yolox.errors import MissingDependencyError, UsageError, needs
from yolox.trainer.launchers.agent import serve_node
from yolox.trainer.launchers.base import Slot, Worker
from yolox.trainer.launchers.heartbeat import HangLimits
from yolox.trainer.launchers.popen import package_path
from yolox.trainer.launchers.protocol import JoinInfo
from yolox.trainer.launchers.remote import run_remote

_END_SECONDS = 5.0
_REGISTER_SECONDS = 20.0  # for executors to come up before their number counts
_LOGGING = """
rootLogger.level = error
rootLogger.appenderRef.stderr.ref = console
appender.console.type = Console
appender.console.name = console
appender.console.target = SYSTEM_ERR
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %p %c{1}: %m%n
"""
_REASON = re.compile(r"^(?:: )?(?:[\w.]+\.)?(\w*(?:Error|Exception): .+)$", re.MULTILINE)


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
        with _context(self.master, len(slots)) as context:
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


def first_reason(text: str) -> str:
    """Return the line of a Spark error that names the cause: it repeats Java's and Python's stacks for pages."""
    reasons = [match.group(1) for match in _REASON.finditer(text)]
    inner = [reason for reason in reasons if not reason.startswith(("Py4J", "SparkException: Job", "PythonException"))]
    chosen = (inner or reasons or text.strip().splitlines() or ["Spark gave no reason"])[0]
    if "No module named" in chosen:
        chosen += " (in the Python of an executor; set PYSPARK_PYTHON, or install the package on every machine)"
    return chosen


@contextmanager
def _context(master: str | None, world: int) -> Iterator[Any]:
    """Yield the active SparkContext, or one that ends with the run."""
    with needs("pyspark", "pip install 'yolox-cpu[spark]'"):
        import pyspark
    active = pyspark.SparkContext._active_spark_context
    if active is not None:
        if master not in (None, active.master):
            raise UsageError(f"a SparkContext at '{active.master}' is active; expected '{master}' or none. Stop it.")
        yield active
        return
    if shutil.which("java") is None and not os.environ.get("JAVA_HOME"):
        raise MissingDependencyError("Java (Spark runs on it)", "apt-get install openjdk-17-jre-headless")
    own_java = pyspark.SparkContext._gateway is None
    try:
        with _quiet_java():
            context = _make_context(pyspark, master, world)
        try:
            yield context
        finally:
            context.stop()
    finally:
        if own_java:
            _end_java(pyspark)


@contextmanager
def _quiet_java() -> Iterator[None]:
    """Have a Java process started inside use this Python, and print nothing but errors unless it is set up already."""
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    if {"SPARK_CONF_DIR", "SPARK_SUBMIT_OPTS"} & set(os.environ):
        yield
        return
    with tempfile.TemporaryDirectory(prefix="yolox-spark-") as folder:
        file = Path(folder) / "log4j2.properties"
        file.write_text(_LOGGING, encoding="ascii")
        os.environ["SPARK_SUBMIT_OPTS"] = f"-Dlog4j2.configurationFile={file}"
        try:
            yield
        finally:
            del os.environ["SPARK_SUBMIT_OPTS"]


def _make_context(pyspark: Any, master: str | None, world: int) -> Any:
    conf = pyspark.SparkConf().setAppName("yolox")
    if master is not None:
        conf.setMaster(master)
    conf.setIfMissing("spark.master", f"local[{world}]")
    if conf.get("spark.master").startswith("local"):
        conf.setIfMissing("spark.driver.host", "127.0.0.1").setIfMissing("spark.driver.bindAddress", "127.0.0.1")
    for name, value in (
        ("spark.executorEnv.PYTHONPATH", package_path(dict(os.environ))),
        ("spark.log.level", "ERROR"),
        ("spark.ui.enabled", "false"),
        ("spark.ui.showConsoleProgress", "false"),
        ("spark.scheduler.barrier.maxConcurrentTasksCheck.interval", "1s"),
    ):
        conf.setIfMissing(name, value)
    try:
        return pyspark.SparkContext(conf=conf)
    except Exception as error:
        raise UsageError(
            f"Spark at '{conf.get('spark.master')}' cannot be started: {first_reason(str(error))}"
        ) from error


def _end_java(pyspark: Any) -> None:
    """End the Java process that was started for the context; the next one starts its own."""
    gateway = pyspark.SparkContext._gateway
    if gateway is None:
        return
    gateway.shutdown()
    process = getattr(gateway, "proc", None)
    if process is not None:
        with suppress(OSError):
            process.stdin.close()  # it ends with its standard input
        process.wait(_END_SECONDS)
    pyspark.SparkContext._gateway = pyspark.SparkContext._jvm = None
