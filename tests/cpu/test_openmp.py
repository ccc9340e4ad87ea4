"""Waiting threads: set before PyTorch comes, and only where the user has not chosen."""

from __future__ import annotations

import subprocess
import sys

CODE = """
from yolox.cpu.threads import shorten_waits
first = {}
assert shorten_waits(first) and list(first) == ["GOMP_SPINCOUNT"], first
assert not shorten_waits(first), "a setting is left alone"
mine = {"OMP_WAIT_POLICY": "active"}
assert not shorten_waits(mine) and len(mine) == 1
import os, sys
os.environ.pop("GOMP_SPINCOUNT", None)
os.environ.pop("OMP_WAIT_POLICY", None)
assert "torch" not in sys.modules
assert shorten_waits() and int(os.environ["GOMP_SPINCOUNT"]) > 0
sys.modules["torch"] = None
assert not shorten_waits({}), "too late"
"""


def test_only_before_torch_and_only_without_a_choice() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
