"""Fresh interpreters: works from a notebook, and from a script without a main guard."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from yolox.cpu.affinity import thread_environment
from yolox.trainer.launchers.base import Slot, Worker
from yolox.trainer.launchers.heartbeat import HangLimits
from yolox.trainer.launchers.supervise import supervise
from yolox.trainer.launchers.worker import RunDirectory
from yolox.trainer.launchers.worker_group import LocalWorkerGroup

__all__ = ["PopenLauncher", "package_path", "start_worker", "worker_environment"]

_SERVE = "import sys; from yolox.trainer.launchers.worker import main; sys.exit(main(sys.argv[1:]))"


class PopenLauncher:
    """Starts ``python`` once for each slot and sends it the function as a file.

    Args:
        limits: When a run that does nothing is taken to hang; None for never.
        python: The interpreter; by default this one.
    """

    def __init__(self, limits: HangLimits | None = HangLimits(), python: str | None = None) -> None:  # noqa: B008 - frozen
        self.limits = limits
        self.python = python

    def run(self, function: Callable[[Worker], Any], slots: Sequence[Slot]) -> list[Any]:
        """Return the results by rank; see `Launcher`."""
        directory = RunDirectory(Path(tempfile.mkdtemp(prefix="yolox-run-")))
        processes: list[subprocess.Popen[bytes]] = []
        group = LocalWorkerGroup(processes, directory)
        try:
            directory.place(slots, function)
            for slot in slots:
                processes.append(start_worker(directory, slot, self.python))
            return supervise(directory, group, self.limits)
        finally:
            group.kill()
            shutil.rmtree(directory.path, ignore_errors=True)


def start_worker(
    directory: RunDirectory,
    slot: Slot,
    python: str | None = None,
    network: Mapping[str, str] | None = None,
    streams: tuple[Any, Any] | None = None,
    cwd: str | None = None,
) -> subprocess.Popen[bytes]:
    """Start the process of one slot.

    Args:
        directory: Already holds the function and the setup.
        slot: Which one.
        python: The interpreter; by default this one.
        network: Variables that say how ranks reach each other; by default all are on this machine.
        streams: Where rank 0 writes; by default to the streams of this process.
        cwd: Folder to work in; by default this process's.
    """
    environment = worker_environment(slot, network)
    environment.update(PYTHONPATH=package_path(environment))
    command = [python or sys.executable, "-c", _SERVE, str(directory.path), str(slot.rank)]
    if slot.rank == 0:
        return _start_visible(command, environment, streams or (sys.stdout, sys.stderr), cwd)
    with directory.output(slot.rank).open("wb") as output:
        return subprocess.Popen(
            command,
            env=environment,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


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
    return {**environment, "PYTHONWARNINGS": ",".join(filters)}


def package_path(environment: dict[str, str]) -> str:
    """Return a PYTHONPATH with which a fresh interpreter finds this very package first."""
    here = str(Path(__file__).resolve().parents[3])
    return os.pathsep.join([here, *filter(None, [environment.get("PYTHONPATH")])])


def local_network(environment: dict[str, str]) -> dict[str, str]:
    """Return settings that keep ranks of one machine on its loopback interface, whatever its name resolves to."""
    if "GLOO_SOCKET_IFNAME" in environment or not Path("/sys/class/net/lo").exists():
        return {}
    return {"GLOO_SOCKET_IFNAME": "lo"}


def _start_visible(
    command: Sequence[str], environment: dict[str, str], streams: tuple[Any, Any], cwd: str | None
) -> subprocess.Popen[bytes]:
    """Start rank 0, whose output the user sees, in a notebook as well, where it has to be carried over."""
    carried = [not _has_descriptor(stream) for stream in streams]
    process = subprocess.Popen(
        command,
        env=environment,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if carried[0] else None,
        stderr=subprocess.PIPE if carried[1] else None,
        start_new_session=True,
    )
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
