"""What others compute beside this process is noticed, and what this process computes is not."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from yolox.cpu.other_load import OtherLoad


def test_a_busy_process_is_noticed() -> None:
    code = "import time; end = time.monotonic() + 60\nwhile time.monotonic() < end: pass"
    with subprocess.Popen([sys.executable, "-c", code]) as busy:
        try:
            load, end = OtherLoad(), time.monotonic() + 1.0
            while time.monotonic() < end:
                time.sleep(0.01)
            cores = load.cores()
        finally:
            busy.kill()
    assert cores is not None
    assert cores > 0.1  # a whole core, where nothing else runs


def test_own_work_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "stat").write_text("cpu 0 0\n" + "".join(f"cpu{i} 7 0 0 9 0 0 0 0 0 0\n" for i in range(512)))
    load, end = OtherLoad(tmp_path), time.monotonic() + 0.1
    while time.monotonic() < end:
        pass
    assert load.cores() == 0.0


def test_a_system_that_does_not_tell(tmp_path: Path) -> None:
    assert OtherLoad(tmp_path).cores() is None
