"""Threads that compute: where they run, how many there are, and how they wait for each other."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import suppress
from pathlib import Path

_OTHER_BINDINGS = ("KMP_AFFINITY", "GOMP_CPU_AFFINITY", "OMP_PLACES", "OMP_PROC_BIND")
_COUNT = "GOMP_SPINCOUNT"
_CHOICES = (_COUNT, "OMP_WAIT_POLICY")
_TURNS = "20000"  # some 50 microseconds; 2000 costs a tenth of the speed of training, the default is 300,000


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


def shorten_waits(environment: MutableMapping[str, str] | None = None) -> bool:
    """Have waiting threads of GNU OpenMP fall asleep soon, so that loaders compute while they wait.

    With the default they keep their core for milliseconds; measured by ``benchmarks.data_pipeline``, training from
    files is 7 % faster this way and training from memory as fast. It acts only before PyTorch is imported, and leaves a
    user's own setting alone.

    Args:
        environment: Variables to change; None for those of this process.

    Returns:
        Whether it was set.
    """
    environment = os.environ if environment is None else environment
    if "torch" in sys.modules or any(name in environment for name in _CHOICES):
        return False
    environment[_COUNT] = _TURNS
    return True
