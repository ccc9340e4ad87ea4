from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from yolox.cpu.threads import bind_process, thread_environment


def test_thread_environment_leaves_the_given_one_alone() -> None:
    given = {"OMP_NUM_THREADS": "8", "KMP_AFFINITY": "compact", "HOME": "/root"}
    changed = thread_environment(given, 2, bound=True)
    assert changed == {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2", "HOME": "/root"}
    assert given["KMP_AFFINITY"] == "compact"
    assert thread_environment(given, 2, bound=False)["KMP_AFFINITY"] == "compact"


def test_nothing_to_bind_to() -> None:
    assert not bind_process(())


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system cannot bind processes")
def test_every_thread_is_bound_and_children_inherit() -> None:
    cpu = min(os.sched_getaffinity(0))
    script = (
        "import os, subprocess, sys, threading, time\n"
        "from pathlib import Path\n"
        "from yolox.cpu.threads import bind_process\n"
        "threading.Thread(target=time.sleep, args=(5,), daemon=True).start()\n"
        f"assert bind_process([{cpu}])\n"
        "masks = {tuple(os.sched_getaffinity(int(t.name))) for t in Path('/proc/self/task').iterdir()}\n"
        f"assert masks == {{({cpu},)}}, masks\n"
        "code = 'import os; print(sorted(os.sched_getaffinity(0)))'\n"
        "print(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout)"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=root)
    assert done.stdout.strip() == f"[{cpu}]"
