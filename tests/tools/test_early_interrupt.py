"""Ctrl-C and SIGTERM at any moment of a command: its exit code, one line, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from yolox.tools.command import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
INTERRUPT = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["INTERRUPTED_IMPORT"]:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
        return None

sys.meta_path.insert(0, Interrupt())
"""
TOOLS = sorted({module for module, _ in COMMANDS.values()} | {"demo", "kernels"})


def run(folder: Path, module: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command that gets a Ctrl-C at the moment at which it imports ``module``."""
    (folder / "sitecustomize.py").write_text(INTERRUPT)
    path = os.pathsep.join([str(folder), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "INTERRUPTED_IMPORT": module}
    return subprocess.run(
        [sys.executable, *command], env=environment, cwd=folder, capture_output=True, text=True, check=False
    )


def assert_stopped(done: subprocess.CompletedProcess[str]) -> None:
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped by the user\n")


@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_stops_quietly(tool: str, tmp_path: Path) -> None:
    assert_stopped(run(tmp_path, "yolox.errors", "-m", f"yolox.tools.{tool}", "--help"))


@pytest.mark.parametrize("name", ["val", "train"])
def test_the_command_stops_quietly(name: str, tmp_path: Path) -> None:
    script = tmp_path / "yolox"  # as pip writes it
    script.write_text("import sys\nfrom yolox.tools.command import main\nsys.exit(main())\n")
    assert_stopped(run(tmp_path, "yolox.config", "-m", "yolox", name, "--help"))
    assert_stopped(run(tmp_path, "yolox.config", str(script), name, "--help"))
    assert_stopped(run(tmp_path, f"yolox.tools.{COMMANDS[name][0]}", str(script), name, "--help"))


def test_heavy_imports_stop_quietly(tmp_path: Path) -> None:
    """They happen inside the tool, where Ctrl-C is an exception again."""
    done = run(tmp_path, "numpy", "-m", "yolox.tools.train", "-n", "yolox_nano", "--dry-run")
    assert done.returncode == 130
    assert done.stderr.endswith("stopped by the user\n")
    assert "Traceback" not in done.stderr


def test_other_programs_keep_their_interrupts(tmp_path: Path) -> None:
    code = "import signal, yolox.tools.train; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    assert run(tmp_path, "nothing", "-c", code).stdout == "True\n"


TERMINATED = """
import os, signal, sys, tempfile
from yolox.tools.arguments import run_tool

def body():
    with tempfile.TemporaryDirectory(prefix="of-a-tool-"):
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()

sys.exit(run_tool(body))
"""


def test_sigterm_leaves_no_temporary_folder(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", TERMINATED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "stopped by SIGTERM\n")
    assert not list(tmp_path.glob("of-a-tool-*"))


KILLED = """
import os, signal
from yolox.data.loader import worker_context
kept = worker_context("spawn").Semaphore()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_semaphores_of_a_killed_process_are_no_news() -> None:
    """Python removes them, and printed a warning with its source line into the terminal of a run that was over."""
    done = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGKILL, "")
