"""Fixtures shared by every test: where the real data lies, and clusters of this one machine."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from loopback import free_port

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
STORE = 80 * 2**20
MARK = "YOLOX_TEST_RUN"
"""Variable that everything started on a cluster of this session inherits."""

# The same examples in each run, and none refused because the machine was slow.
settings.register_profile(
    "laws",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("laws")


def _need(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"real data is absent: {path} does not exist")
    return path


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    return _need(SHARED)


@pytest.fixture(scope="session")
def coco_mini() -> Path:
    return _need(SHARED / "data" / "coco_mini")


@pytest.fixture(scope="session")
def nano_weights() -> Path:
    return _need(SHARED / "data" / "weights" / "yolox_nano.pth")


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    return _need(SHARED / "golden")


@pytest.fixture(scope="session")
def ray_client_port() -> int:
    """Port of the Ray Client server of `ray_cluster`."""
    return free_port()


@pytest.fixture(scope="session")
def ray_cluster(ray_client_port: int) -> Iterator[Any]:
    """Two Ray nodes with one CPU each; this process is not connected to them."""
    pytest.importorskip("ray", reason="Ray is not installed (pip install '.[ray]')")
    from ray.cluster_utils import Cluster

    os.environ[MARK] = str(os.getpid())

    settings = {"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False}
    client = {"ray_client_server_port": ray_client_port}
    before = signal.getsignal(signal.SIGTERM)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it leaves the log files of the client's server open
        cluster = Cluster(initialize_head=True, head_node_args={**settings, **client})
    cluster.add_node(num_cpus=1, object_store_memory=STORE)
    signal.signal(signal.SIGTERM, before)  # Ray's would end the cluster and this process
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="session")
def spark_context() -> Iterator[Any]:
    """An active SparkContext with two executors of one core each, in processes of their own."""
    pyspark = pytest.importorskip("pyspark", reason="Spark is not installed (pip install '.[spark]')")
    if shutil.which("java") is None and not os.environ.get("JAVA_HOME"):
        pytest.skip("Spark needs Java, and there is none (apt-get install openjdk-17-jre-headless)")
    os.environ[MARK] = str(os.getpid())
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    conf = pyspark.SparkConf().setMaster("local-cluster[2,1,512]").setAppName("tests")
    settings = {
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.memory": "512m",
        "spark.executor.memory": "512m",
        "spark.executorEnv.PYTHONPATH": str(ROOT),
        "spark.scheduler.barrier.maxConcurrentTasksCheck.interval": "1s",
        "spark.ui.enabled": "false",
        "spark.log.level": "OFF",
    }
    for name, value in settings.items():
        conf.set(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        context = pyspark.SparkContext(conf=conf)
    yield context
    context.stop()


@pytest.fixture
def bf16_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use kernels that multiply bfloat16: this processor's, or the portable ones where it has none."""
    from yolox.kernels.library import SWITCH, kernels
    from yolox.kernels.training.bindings import has_pointwise

    if kernels() is None:
        pytest.skip("no C++ compiler, or YOLOX_KERNELS=0")
    if not has_pointwise():
        monkeypatch.setenv(SWITCH, "portable")
