"""Clusters that lose processes: predictions are those of one machine all the same, trainings end with an error."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from loopback import free_port
from self_labelled import write_checkpoint

from yolox.data.sample_dataset import draw_sample_set
from yolox.tools.command import main

pytestmark = pytest.mark.processes
MARK = "YOLOX_TEST_LOST_WORKER"
SECONDS = 240


def marked(mark: str) -> list[int]:
    """Processes that inherited the mark."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (place / "environ").read_bytes().split(b"\0"):
                found.append(int(place.name))
        except OSError:  # it has ended meanwhile, or belongs to somebody else
            continue
    return found


def predicting(mark: str, command: int) -> list[int]:
    """Those of them that hold PyTorch, as all do that have the model.

    Processes that the command has just forked look like itself until they execute another program.
    """
    found = []
    own_words = Path(f"/proc/{command}/cmdline").read_bytes()
    for process in marked(mark):
        place = Path("/proc") / str(process)
        try:
            if (place / "cmdline").read_bytes() != own_words and "libtorch_cpu" in (place / "maps").read_text():
                found.append(process)
        except OSError:
            continue
    return found


def kill_one(mark: str, command: subprocess.Popen[bytes]) -> int | None:
    """Kill a process as soon as it begins to predict; None where the command ended before."""
    while command.poll() is None:
        for worker in predicting(mark, command.pid):
            os.kill(worker, signal.SIGKILL)
            return worker
        time.sleep(0.02)
    return None


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@dataclass(frozen=True)
class Question:
    """What is asked of one machine and of a cluster, and what one machine answers."""

    words: list[str]
    expected: list[dict[str, Any]]

    def check(self, out: str) -> None:
        found = lines(out)
        assert [line["image"] for line in found] == [f"{number:02}.png" for number in range(12)]
        for here, there in zip(self.expected, found, strict=True):
            assert [thing["name"] for thing in here["objects"]] == [thing["name"] for thing in there["objects"]]
            for one, two in zip(here["objects"], there["objects"], strict=True):
                assert one["box_xyxy"] == pytest.approx(two["box_xyxy"], abs=1e-2)
        assert sum(len(line["objects"]) for line in found) > 12


@pytest.fixture
def question(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Question:
    images, checkpoint = tmp_path / "images", write_checkpoint(tmp_path / "mine.pth")
    images.mkdir()
    rng = np.random.default_rng(0)
    for number in range(12):
        image = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        cv2.imwrite(str(images / f"{number:02}.png"), cv2.resize(image, (64, 48)))
    words = ["predict", str(images), "-c", str(checkpoint), "--conf", "0.5", "-b", "1", "--json"]
    assert main(words) == 0
    return Question(words, lines(capsys.readouterr().out))


def need(library: str) -> None:
    pytest.importorskip(library)
    if library == "pyspark" and shutil.which("java") is None and not os.environ.get("JAVA_HOME"):
        pytest.skip("Spark needs Java, and there is none")


@contextmanager
def running(words: Sequence[str], **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run the command ``yolox`` in a group of processes of its own, which is gone afterwards."""
    surroundings = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = subprocess.Popen(
        [sys.executable, "-m", "yolox", *words],
        env={**surroundings, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield command
    finally:
        if command.poll() is None:
            os.killpg(command.pid, signal.SIGKILL)
            command.communicate()


@pytest.mark.parametrize(("library", "address"), [("ray", "ray"), ("pyspark", "local[2]")])
def test_a_killed_worker_changes_nothing(library: str, address: str, question: Question) -> None:
    need(library)
    mark = f"{os.getpid()}-{library}"
    with running([*question.words, "--cluster", address], **{MARK: mark}) as command:
        killed = kill_one(mark, command)
        out, err = command.communicate(timeout=SECONDS)
    assert command.returncode == 0, err.decode(errors="replace")[-2000:]
    assert killed is not None
    question.check(out.decode())


@pytest.fixture
def spark_machines(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """A Spark master and two workers, as on three machines: its address, and the mark of each worker's processes."""
    need("pyspark")
    import pyspark

    home = Path(pyspark.__file__).parent
    host, port = "127.0.0.1", free_port()
    address, marks = f"spark://{host}:{port}", [f"{os.getpid()}-machine{number}" for number in (1, 2)]
    surroundings = {**os.environ, "SPARK_HOME": str(home), "SPARK_LOCAL_IP": host}
    common = ["--host", host, "--webui-port", "0"]
    worker = ["worker.Worker", *common, "--cores", "1", "--memory", "1g", "--work-dir", str(tmp_path / "work"), address]
    daemons = {
        "master": (["master.Master", *common, "--port", str(port)], f"{os.getpid()}-master"),
        **{mark: (worker, mark) for mark in marks},
    }
    started = []
    try:
        for name, ((kind, *words), mark) in daemons.items():
            log = (tmp_path / f"{name}.log").open("wb")
            command = [str(home / "bin" / "spark-class"), f"org.apache.spark.deploy.{kind}", *words]
            with log:
                process = subprocess.Popen(command, env={**surroundings, MARK: mark}, stdout=log, stderr=log)
            started.append(process)
            wait_for(tmp_path / f"{name}.log", "New state: ALIVE" if name == "master" else "Successfully registered")
        yield address, marks
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(30)


def wait_for(log: Path, words: str) -> None:
    """Wait until a daemon has written something into its log."""
    end = time.monotonic() + SECONDS
    while words not in log.read_text(errors="replace"):
        assert time.monotonic() < end, log.read_text(errors="replace")[-2000:]
        time.sleep(0.05)


def lose_machine(mark: str, command: subprocess.Popen[bytes]) -> bool:
    """Kill all processes of a worker, itself first, once one of them begins to compute; False if none did."""
    while command.poll() is None:
        if predicting(mark, command.pid):
            for process in sorted(marked(mark)):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            return True
        time.sleep(0.02)
    return False


def test_a_lost_machine_of_a_spark_cluster_changes_nothing(
    spark_machines: tuple[str, list[str]], question: Question
) -> None:
    address, marks = spark_machines
    with running([*question.words, "--cluster", address], SPARK_LOCAL_IP="127.0.0.1") as command:
        lost = lose_machine(marks[0], command)
        out, err = command.communicate(timeout=SECONDS)
    assert command.returncode == 0, err.decode(errors="replace")[-2000:]
    assert lost
    question.check(out.decode())


def test_a_lost_machine_of_a_spark_cluster_ends_a_training(
    spark_machines: tuple[str, list[str]], tmp_path: Path
) -> None:
    address, marks = spark_machines
    draw_sample_set(tmp_path / "data", num_train=4, num_val=2)
    words = ["train", "-n", "yolox_nano", "--data_dir", str(tmp_path / "data"), "-b", "2", "--num_workers", "0"]
    words += ["--logger", "none", "--num_processes", "2", "--strategy", "spark", "--cluster", address]
    words += ["max_epoch=1000", "input_size=64", "test_size=64", "eval_interval=1000", f"output_dir={tmp_path / 'out'}"]
    with running(words, SPARK_LOCAL_IP="127.0.0.1") as command:
        lost = lose_machine(marks[0], command)
        _, err = command.communicate(timeout=SECONDS)
    text = err.decode(errors="replace")
    assert lost
    assert command.returncode == 1, text[-2000:]
    assert "our process there is gone" in text
    assert not any("yolox-run-" in Path(f"/proc/{process}/cmdline").read_text() for process in marked(marks[1]))
