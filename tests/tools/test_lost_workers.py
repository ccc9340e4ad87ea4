"""`predict --cluster` when a process that predicts is killed: the results are those of one machine all the same."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from self_labelled import write_checkpoint

from yolox.tools.command import main

pytestmark = pytest.mark.processes
MARK = "YOLOX_TEST_LOST_WORKER"
SECONDS = 240


def predicting(mark: str, command: int) -> list[int]:
    """Processes that inherited the mark from the command and hold PyTorch, as those do that have the model.

    Processes that the command has just forked look like itself until they execute another program.
    """
    found = []
    own_words = Path(f"/proc/{command}/cmdline").read_bytes()
    for place in Path("/proc").glob("[0-9]*"):
        try:
            marked = f"{MARK}={mark}".encode() in (place / "environ").read_bytes().split(b"\0")
            forked = (place / "cmdline").read_bytes() == own_words
            if marked and not forked and "libtorch_cpu" in (place / "maps").read_text():
                found.append(int(place.name))
        except OSError:  # it has ended meanwhile, or belongs to somebody else
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


@pytest.mark.parametrize(("library", "address"), [("ray", "ray"), ("pyspark", "local[2]")])
def test_a_killed_worker_changes_nothing(
    library: str, address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(library)
    if library == "pyspark" and shutil.which("java") is None and not os.environ.get("JAVA_HOME"):
        pytest.skip("Spark needs Java, and there is none")
    images, checkpoint = tmp_path / "images", write_checkpoint(tmp_path / "mine.pth")
    images.mkdir()
    rng = np.random.default_rng(0)
    for number in range(12):
        image = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        cv2.imwrite(str(images / f"{number:02}.png"), cv2.resize(image, (64, 48)))
    words = ["predict", str(images), "-c", str(checkpoint), "--conf", "0.5", "-b", "1", "--json"]
    assert main(words) == 0
    expected = lines(capsys.readouterr().out)
    mark = f"{os.getpid()}-{library}"
    surroundings = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = subprocess.Popen(
        [sys.executable, "-m", "yolox", *words, "--cluster", address],
        env={**surroundings, MARK: mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        killed = kill_one(mark, command)
        out, err = command.communicate(timeout=SECONDS)
    finally:
        if command.poll() is None:
            os.killpg(command.pid, signal.SIGKILL)
    assert command.returncode == 0, err.decode(errors="replace")[-2000:]
    assert killed is not None
    found = lines(out.decode())
    assert [line["image"] for line in found] == [f"{number:02}.png" for number in range(12)]
    for here, there in zip(expected, found, strict=True):
        assert [thing["name"] for thing in here["objects"]] == [thing["name"] for thing in there["objects"]]
        for one, two in zip(here["objects"], there["objects"], strict=True):
            assert one["box_xyxy"] == pytest.approx(two["box_xyxy"], abs=1e-2)
    assert sum(len(line["objects"]) for line in found) > 12
