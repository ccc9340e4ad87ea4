"""Fresh interpreters: works from a notebook, and from a script without a main guard."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from yolox.cpu.threads import thread_environment
from yolox.processes.start import Program, package_path, start
from yolox.temporary_folders import TemporaryFolder
from yolox.trainer.launchers.base import Slot, Worker
from yolox.trainer.launchers.heartbeat import HangLimits
from yolox.trainer.launchers.supervise import LocalWorkerGroup, supervise
from yolox.trainer.launchers.worker import RunDirectory

WORKER = Program("yolox.trainer.launchers.worker:serve")
"""What the process of a slot runs."""


class PopenLauncher:
    """Starts ``python`` once for each slot and sends it the function as a file.

    Args:
        limits: When a run that does nothing is taken to hang; None for never.
        python: The interpreter; by default this one.
    """

    def __init__(self, limits: HangLimits | None = HangLimits(), python: str | None = None) -> None:  # noqa: B008 - frozen
        self.limits = limits
        self.program = WORKER if python is None else replace(WORKER, python=python)

    def run(self, function: Callable[[Worker], Any], slots: Sequence[Slot]) -> list[Any]:
        """Return the results by rank; see `Launcher`."""
        folder = TemporaryFolder("run")
        directory = RunDirectory(folder.path)
        processes: list[subprocess.Popen[bytes]] = []
        group = LocalWorkerGroup(processes, directory)
        try:
            directory.place(slots, function)
            for slot in slots:
                processes.append(start_worker(directory, slot, self.program))
            return supervise(directory, group, self.limits)
        finally:
            group.kill()
            folder.remove()


def start_worker(
    directory: RunDirectory,
    slot: Slot,
    program: Program = WORKER,
    network: Mapping[str, str] | None = None,
    streams: tuple[Any, Any] | None = None,
) -> subprocess.Popen[bytes]:
    """Start the process of one slot.

    Args:
        directory: Already holds the function and the setup.
        slot: Which one.
        program: Interpreter, import path and working folder, where they are not those of this process.
        network: Variables that say how ranks reach each other; by default all are on this machine.
        streams: Where rank 0 writes; by default to the streams of this process.
    """
    environment = worker_environment(slot, network)
    environment.update(PYTHONPATH=package_path(environment))
    program = replace(program, arguments=(str(directory.path), slot.rank), environment=environment)
    if slot.rank == 0:
        return _start_visible(program, streams or (sys.stdout, sys.stderr))
    with directory.file("output", slot.rank).open("wb") as output:
        return start(program, stdout=output, stderr=subprocess.STDOUT)


def worker_environment(slot: Slot, network: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variables of a worker.

    Args:
        slot: Its place.
        network: As in `start_worker`.
    """
    environment = thread_environment(os.environ, slot.threads, bool(slot.cpus))
    environment.update(local_network(environment) if network is None else network)
    # a rank that is stopped leaves semaphores of its loaders behind; Python removes them, and need not say so
    filters = filter(None, [environment.get("PYTHONWARNINGS"), "ignore:resource_tracker:UserWarning"])
    # a terminal may lack letters that a message has: those are replaced
    return {"PYTHONIOENCODING": ":replace", **environment, "PYTHONWARNINGS": ",".join(filters)}


def local_network(environment: dict[str, str]) -> dict[str, str]:
    """Return settings that keep ranks of one machine on its loopback interface, whatever its name resolves to."""
    if "GLOO_SOCKET_IFNAME" in environment or not Path("/sys/class/net/lo").exists():
        return {}
    return {"GLOO_SOCKET_IFNAME": "lo"}


def _start_visible(program: Program, streams: tuple[Any, Any]) -> subprocess.Popen[bytes]:
    """Start rank 0, whose output the user sees, in a notebook as well, where it has to be carried over."""
    pipes = [None if _has_descriptor(stream) else subprocess.PIPE for stream in streams]
    process = start(program, stdout=pipes[0], stderr=pipes[1])
    for source, target in zip((process.stdout, process.stderr), streams, strict=True):
        if source is not None:
            threading.Thread(target=_carry, args=(source, target), daemon=True).start()
    return process


def _has_descriptor(stream: Any) -> bool:
    try:
        return stream.fileno() in (1, 2)
    except (AttributeError, OSError, ValueError):
        return False


def _carry(source: IO[bytes], target: Any) -> None:
    with source:
        for line in source:
            target.write(line.decode("utf-8", errors="replace"))
            target.flush()
