"""Processes start alone, answer in time, say how they died, and never outlive their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from process_state import alive, left

from yolox.processes.inside import peak_memory_mb
from yolox.processes.messages import Channel
from yolox.processes.start import Process, ProcessFailure, Program, import_path, tail, wait_for_any

pytestmark = pytest.mark.processes
ROOT = Path(__file__).resolve().parents[2]
PATH = [str(Path(__file__).parent), *import_path()]


@dataclass(frozen=True)
class Word:
    text: str
    number: float = 0.0


def program(function: str, *arguments: object, **changes: Any) -> Program:
    return Program(f"{Path(__file__).stem}:{function}", arguments, path=PATH, **changes)


def echo(connection: Connection, prefix: str) -> int:
    channel = Channel(connection, [Word])
    while True:
        try:
            word = channel.receive()
        except EOFError:
            return 0
        channel.send(Word(f"{prefix} {word.text} {os.getpid()}", peak_memory_mb() or 0.0))


def fail(connection: Connection) -> None:
    raise RuntimeError("no such luck")


def crash(connection: Connection) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def sleep_with_child(connection: Connection) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Channel(connection, []).send(Word(str(child.pid)))
    time.sleep(600)


def test_a_process_answers_with_its_own_peak_memory_and_ends_with_its_channel() -> None:
    ballast = bytearray(300 << 20)
    process = Process(program("echo", "to"), [Word])
    process.send(Word("you"))
    (ready,) = wait_for_any([process], 60)
    answer = ready.receive(60)
    assert answer.text == f"to you {process.pid}"
    assert 5 < answer.number < len(ballast) / 1e6
    process.stop(10)
    assert process.ended
    process.stop()
    with pytest.raises(ProcessFailure):
        process.receive(1)


@pytest.mark.parametrize(
    ("function", "message"),
    [("fail", "ended with code 1 while starting: RuntimeError: no such luck"), ("crash", "signal 11 .SIGSEGV. while")],
)
def test_a_death_is_described(function: str, message: str, tmp_path: Path) -> None:
    process = Process(program(function), [Word], tmp_path / "log.txt")
    with pytest.raises(ProcessFailure, match=message) as caught:
        process.receive(60)
    assert not caught.value.timed_out
    assert (function == "fail") == ("RuntimeError" in tail(tmp_path / "log.txt"))


def test_a_process_that_takes_too_long_is_ended_with_its_children() -> None:
    process = Process(program("sleep_with_child"), [Word])
    child = int(process.receive(60).text)
    process.doing = "dreaming"
    with pytest.raises(ProcessFailure, match="stopped after 0 s while dreaming") as caught:
        process.receive(0.01)
    assert caught.value.timed_out
    assert not left([process.pid, child], seconds=10)


def test_files_of_the_working_directory_are_not_imported(tmp_path: Path) -> None:
    for name in ("json", "yolox", "ctypes", "threading"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('taken from the working directory')")
    process = Process(program("echo", "to", cwd=str(tmp_path)), [Word])
    process.send(Word("you"))
    assert process.receive(60).text.startswith("to you")
    process.stop()


@pytest.mark.parametrize("thread", [False, True])
def test_a_process_dies_with_its_parent_and_not_with_the_thread_that_started_it(thread: bool, tmp_path: Path) -> None:
    begin = "thread = threading.Thread(target=go); thread.start(); thread.join()" if thread else "go()"
    script = f"""
import sys, threading, time
sys.path[:0] = {PATH!r}
from {Path(__file__).stem} import *
made = []
def go():
    made.append(Process(program("echo", "to"), [Word]))
{begin}
time.sleep(1)
made[0].send(Word("you"))
print(made[0].receive(60).text, flush=True)
time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline().split()[-1])
    assert alive(pid)
    parent.kill()
    parent.communicate()
    assert not left([pid], seconds=10)


def test_a_parent_that_is_gone_already_is_noticed() -> None:
    """The process finds another parent than the one that it was told of."""
    script = f"""
import os, sys
os.getpid = lambda: 1
sys.path[:0] = {PATH!r}
from {Path(__file__).stem} import *
from yolox.processes.start import start
print(start(program("fail")).wait(), flush=True)
"""
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert answer.stdout.strip() == str(-signal.SIGKILL)


def test_another_interpreter_gets_none_of_our_packages() -> None:
    path = import_path("/usr/bin/other-python")
    assert str(ROOT) in path or str(ROOT).startswith(sys.prefix)
    assert not any(entry.startswith((sys.prefix, sys.base_prefix)) for entry in path)
    assert set(path) < set(import_path())
