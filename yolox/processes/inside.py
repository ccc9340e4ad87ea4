"""The inside of a process that `yolox.processes.start` has started: it ends with its parent and calls one function."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path

from yolox.cpu.cgroups import kernel_bytes

_PR_SET_PDEATHSIG = 1  # from <sys/prctl.h>
_WATCH_SECONDS = 0.5


def main() -> None:
    """Call the function that the command line names: ``PARENT KERNEL DESCRIPTOR MODULE:FUNCTION ARGUMENTS``.

    ``KERNEL`` is 1 where the kernel may watch the parent, ``DESCRIPTOR`` that of the connection (-1 without one), and
    ``ARGUMENTS`` a JSON list. The exit code is what the function returns.
    """
    parent, kernel, descriptor, target, arguments = sys.argv[-5:]
    end_with_parent(int(parent), kernel == "1")
    sys.argv = [target]
    module, _, function = target.partition(":")
    connections = [] if descriptor == "-1" else [Connection(int(descriptor))]
    sys.exit(getattr(import_module(module), function)(*connections, *json.loads(arguments)))


def end_with_parent(parent: int, kernel: bool = True) -> None:
    """End this process by SIGKILL as soon as its parent has ended, however that happens.

    Args:
        parent: Process id of the parent.
        kernel: Whether the kernel may do it. It takes the *thread* that has started this process for the parent, so
            this is only right where that was the parent's main thread; else a thread here looks twice a second.
    """
    armed = False
    if kernel:
        with suppress(AttributeError, OSError, TypeError):  # only Linux has the call
            armed = ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0
    if os.getppid() != parent:  # it ended before the kernel was asked
        os.kill(os.getpid(), signal.SIGKILL)
    if not armed:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_WATCH_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def peak_memory_mb() -> float | None:
    """Return the largest resident set of this process so far in MB (10^6 bytes), None where the system does not tell.

    It is ``VmHWM`` and not that of ``getrusage``, which starts at the parent's size. Mapped files count while they are
    in memory.
    """
    found = kernel_bytes(Path("/proc/self/status"), "VmHWM")
    return None if found is None else found / 1e6
