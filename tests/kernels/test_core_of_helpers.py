"""Where the threads of the training kernels and of the int8 engine run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

_TRAINING = """
import torch
from yolox.kernels.training import ops

x = torch.randn(4, 16, 40, 40).contiguous(memory_format=torch.channels_last)
weight = torch.randn(16, 1, 3, 3)
expected = torch.nn.functional.conv2d(x, weight, padding=1, groups=16)

def check():
    torch.testing.assert_close(ops.depthwise(x, weight, 1)[0], expected)
"""
_INT8 = """
import numpy as np
from programs import small_network
from yolox.kernels.int8.executable import Executable

images = np.ones((300, 3, 20, 20), np.float32)
executable = Executable(small_network())
expected = executable.run((images,), 1, 1)[0]

def check():
    np.testing.assert_array_equal(executable.run((images,), 1, 2)[0], expected)
"""
_SCRIPT = """
import json, os, time
from concurrent.futures import ThreadPoolExecutor
{setup}
cores = sorted(os.sched_getaffinity(0))

def call():
    os.sched_setaffinity(0, {{cores[0]}})  # of this thread; those that help it begin on the same core
    until, found = time.monotonic() + 60, set()
    while time.monotonic() < until and not found:
        check()
        for thread in os.listdir("/proc/self/task"):
            if cores[0] not in os.sched_getaffinity(int(thread)):
                found.add(thread)
    return len(found)

print(json.dumps(ThreadPoolExecutor(1).submit(call).result()))
"""


@pytest.mark.usefixtures("need_compiler")
@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs Linux and two cores"
)
@pytest.mark.parametrize("setup", [_TRAINING, _INT8], ids=["training", "int8"])
def test_a_helping_thread_leaves_the_core_of_its_caller(setup: str) -> None:
    path = os.pathsep.join((str(Path(__file__).parent / "int8"), *sys.path))
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": path}
    command = [sys.executable, "-c", _SCRIPT.format(setup=setup)]
    run = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == 1
