"""A SparkContext: the one that is active already, or one that lives only for the run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import MappingProxyType
from typing import Any

from yolox.errors import MissingDependencyError, UsageError, needs
from yolox.processes.spark_master import check_spark_master
from yolox.processes.start import kill_all, package_path
from yolox.temporary_folders import TemporaryFolder

_END_SECONDS = 5.0
_LOGGING = """
rootLogger.level = error
rootLogger.appenderRef.stderr.ref = console
appender.console.type = Console
appender.console.name = console
appender.console.target = SYSTEM_ERR
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %p %c{1}: %m%n
"""
_LOCAL = re.compile(r"local(?:\[(\w+|\*)\])?")
_REASON = re.compile(r"^(?:: )?(?:[\w.]+\.)?(\w*(?:Error|Exception): .+)$", re.MULTILINE)


def first_reason(text: str) -> str:
    """Return the line of a Spark error that names the cause: it repeats Java's and Python's stacks for pages."""
    reasons = [match.group(1) for match in _REASON.finditer(text)]
    inner = [reason for reason in reasons if not reason.startswith(("Py4J", "SparkException: Job", "PythonException"))]
    chosen = (inner or reasons or text.strip().splitlines() or ["Spark gave no reason"])[0]
    if "No module named" in chosen:
        chosen += " (in the Python of an executor; set PYSPARK_PYTHON, or install the package on every machine)"
    return chosen


@contextmanager
def spark_context(
    master: str | None, here: str, settings: Mapping[str, str] = MappingProxyType({}), attempts: int = 1
) -> Iterator[Any]:
    """Yield the active SparkContext, or one that ends with the run.

    Args:
        master: Address of a cluster, ``spark://host:7077``; None for what ``spark-submit`` or its defaults say.
        here: The master where nothing says one: this machine, ``local[2]``.
        settings: Of a context that is made here, unless ``spark-submit`` or its defaults say otherwise.
        attempts: How often a task may be tried on this machine; a cluster has ``spark.task.maxFailures`` for it.

    Raises:
        UsageError: When another context is active, or none can be made, since no master answers for instance.
        MissingDependencyError: When pyspark or Java is not installed.
    """
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
            given = None if master is None else _with_attempts(master, attempts)
            context = _make_context(pyspark, given, _with_attempts(here, attempts), settings)
        try:
            yield context
        finally:
            context.stop()
    finally:
        if own_java:
            _end_java(pyspark)


def _with_attempts(master: str, attempts: int) -> str:
    """Return ``local[2]`` as ``local[2,4]``, and other masters as they are."""
    local = _LOCAL.fullmatch(master)
    return master if local is None or attempts == 1 else f"local[{local.group(1) or 1},{attempts}]"


@contextmanager
def _quiet_java() -> Iterator[None]:
    """Have a Java process started inside use this Python, and print nothing but errors unless it is set up already."""
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    if {"SPARK_CONF_DIR", "SPARK_SUBMIT_OPTS"} & set(os.environ):
        yield
        return
    with TemporaryFolder("spark") as folder:
        file = folder / "log4j2.properties"
        file.write_text(_LOGGING, encoding="ascii")
        os.environ["SPARK_SUBMIT_OPTS"] = f"-Dlog4j2.configurationFile={file}"
        try:
            yield
        finally:
            del os.environ["SPARK_SUBMIT_OPTS"]


def _make_context(pyspark: Any, master: str | None, here: str, settings: Mapping[str, str]) -> Any:
    conf = pyspark.SparkConf().setAppName("yolox")
    if master is not None:
        conf.setMaster(master)
    conf.setIfMissing("spark.master", here)
    if conf.get("spark.master").startswith("spark://"):
        check_spark_master(conf.get("spark.master"))
    if conf.get("spark.master").startswith("local"):
        conf.setIfMissing("spark.driver.host", "127.0.0.1").setIfMissing("spark.driver.bindAddress", "127.0.0.1")
    for name, value in (
        ("spark.executorEnv.PYTHONPATH", package_path(os.environ)),
        ("spark.log.level", "ERROR"),
        ("spark.ui.enabled", "false"),
        ("spark.ui.showConsoleProgress", "false"),
        *settings.items(),
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
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            kill_all([process])
    pyspark.SparkContext._gateway = pyspark.SparkContext._jvm = None
