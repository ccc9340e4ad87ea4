"""Where the threads of the training kernels run."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

_SCRIPT = """
import json, os, threading, time
import torch
from yolox.kernels.training import ops

cores = sorted(os.sched_getaffinity(0))
x = torch.randn(4, 16, 40, 40).contiguous(memory_format=torch.channels_last)
weight = torch.randn(16, 1, 3, 3)
expected = torch.nn.functional.conv2d(x, weight, padding=1, groups=16)
found = set()

def call():
    os.sched_setaffinity(0, {cores[0]})  # of this thread; those that help it begin on the same core
    until = time.monotonic() + 60
    while time.monotonic() < until and not found:
        torch.testing.assert_close(ops.depthwise(x, weight, 1)[0], expected)
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
def test_a_helping_thread_leaves_the_core_of_its_caller() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", _SCRIPT]
    run = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == 1
