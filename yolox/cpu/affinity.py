"""Bind a process and all its threads to hardware threads, and tell OpenMP how many threads to start."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_OTHER_BINDINGS = ("KMP_AFFINITY", "GOMP_CPU_AFFINITY", "OMP_PLACES", "OMP_PROC_BIND")


def bind_process(cpus: Sequence[int]) -> bool:
    """Bind every thread of this process to ``cpus``; threads started later inherit the mask.

    Returns:
        Whether the process is bound now; False where the system has no such call or ``cpus`` is empty.
    """
    if not cpus or not hasattr(os, "sched_setaffinity"):
        return False
    os.sched_setaffinity(0, cpus)
    tasks = Path("/proc/self/task")
    for task in tasks.iterdir() if tasks.is_dir() else ():
        with suppress(ProcessLookupError):  # a thread that has ended meanwhile
            os.sched_setaffinity(int(task.name), cpus)
    return True


def thread_environment(environment: Mapping[str, str], threads: int, bound: bool) -> dict[str, str]:
    """Return the environment for a process that computes with ``threads`` threads.

    It must be in place before the OpenMP library is loaded.

    Args:
        environment: What the process would get otherwise.
        threads: Threads of one parallel region.
        bound: Whether the process is bound; OpenMP's own placement, made for the whole machine, is then left out.
    """
    changed = dict(environment)
    changed.update(OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads))
    for name in _OTHER_BINDINGS if bound else ():
        changed.pop(name, None)
    return changed
