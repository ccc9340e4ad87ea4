"""What this processor can do at most: products a second in three precisions, and bytes a second from memory."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from yolox.errors import MissingDependencyError
from yolox.kernels.build import compiler

PRODUCTS = ("int8", "bf16", "fp32")
BUFFER_BYTES = 1 << 28
"""Of each thread; far more than the caches hold."""


def measure_peaks(threads: int, rounds: int = 1_000_000, repeats: int = 30) -> dict[str, float]:
    """Return multiply-accumulates a second by precision and bytes a second under ``memory``, the best of some runs.

    A precision for which the processor has no instruction is 0; so is each on another processor than x86 with AVX-512.

    Args:
        threads: Threads that do so at the same time.
        rounds: Length of a run.
        repeats: Number of runs.

    Raises:
        MissingDependencyError: Where there is no C++ compiler.
    """
    with tempfile.TemporaryDirectory(prefix="benchmark-peaks-") as folder:
        library = _compiled(Path(folder) / "peaks.so")
    peaks = {name: _best(partial(getattr(library, f"{name}_products"), rounds), threads, repeats) for name in PRODUCTS}
    buffers = [np.ones(BUFFER_BYTES // 8, np.int64) for _ in range(threads)]
    reads = [partial(library.bytes_read, buffer.ctypes.data, BUFFER_BYTES, 1) for buffer in buffers]
    peaks["memory"] = _best(reads, threads, repeats)
    return peaks


def _compiled(path: Path) -> ctypes.CDLL:
    program = compiler()
    if program is None:
        raise MissingDependencyError("a C++ compiler", "apt-get install g++")
    source = Path(__file__).with_suffix(".cpp")
    options = ["-O3", "-march=native", "-std=c++17", "-shared", "-fPIC"]
    subprocess.run([program, *options, str(source), "-o", str(path)], check=True)
    library = ctypes.CDLL(str(path))
    for name in PRODUCTS:
        function = getattr(library, f"{name}_products")
        function.restype, function.argtypes = ctypes.c_int64, (ctypes.c_int64,)
    library.bytes_read.restype = ctypes.c_int64
    library.bytes_read.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
    return library


def _best(work: Callable[[], int] | list[partial[int]], threads: int, repeats: int) -> float:
    """Return the largest sum of what all threads did in a second."""
    calls = work if isinstance(work, list) else [work] * threads
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(repeats):
            start = time.perf_counter()
            done = sum(pool.map(lambda call: call(), calls))
            best = max(best, done / (time.perf_counter() - start))
    return best
