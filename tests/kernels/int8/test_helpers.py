"""Where the threads of the int8 engine run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

_SCRIPT = """
import json, os, threading, time
import numpy as np
from programs import small_network
from yolox.kernels.int8.executable import Executable

cores = sorted(os.sched_getaffinity(0))
images = np.ones((300, 3, 20, 20), np.float32)
executable = Executable(small_network())
expected = executable.run((images,), 1, 1)[0]
found = set()

def call():
    os.sched_setaffinity(0, {cores[0]})  # of this thread; the helpers that it starts begin on the same core
    until = time.monotonic() + 60
    while time.monotonic() < until and not found:
        np.testing.assert_array_equal(executable.run((images,), 1, 2)[0], expected)
        for thread in os.listdir("/proc/self/task"):
            if cores[0] not in os.sched_getaffinity(int(thread)):
                found.add(thread)

thread = threading.Thread(target=call)
thread.start()
thread.join()
print(json.dumps(len(found)))
"""


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs Linux and two cores"
)
def test_a_helper_leaves_the_core_of_its_caller() -> None:
    path = os.pathsep.join((str(Path(__file__).parent), *sys.path))
    command = [sys.executable, "-c", _SCRIPT]
    run = subprocess.run(command, check=False, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == 1
