"""``python -m benchmarks.roofline``: how near each kind of layer comes to the measured peaks of this processor."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peaks import measure_peaks
from benchmarks.protocol import MakePart, Part, Row, native_precisions, run_benchmark
from yolox.kernels.int8.int8_ir import Feature, Program, Step

ABOUT = (
    "Time of each kind of layer on all cores against the products and bytes that it needs: one image in native_int8, "
    "and a training step in bf16."
)
SIZES = {"nano": ("yolox_nano", 416), "tiny": ("yolox_tiny", 416), "s": ("yolox_s", 640)}
REPEATS = 60
Sums = tuple[float, float, float]
"""Seconds, products and bytes."""
COLUMNS = {
    "layers": "{layers}",
    "number": "{number}",
    "ms": "{ms:.3f}",
    "share of the time": "{share:.1%}",
    "million products": "{million_products:.0f}",
    "share of the peak": "{of_peak:.0%}",
    "MB read and written": "{megabytes:.1f}",
    "share of the memory's rate": "{of_memory:.0%}",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and return its exit code."""
    parts: dict[str, MakePart] = {f"int8-{name}": partial(_int8, name) for name in SIZES}
    if "bf16" in native_precisions():
        parts["bf16-training-nano"] = _training
    return run_benchmark("roofline", ABOUT, parts, argv)


def _training(quick: bool) -> Part:
    from benchmarks.training_kernels import timed_step

    size, batch_size, repeats = (64, 2, 2) if quick else (416, 16, 12)
    threads = len(os.sched_getaffinity(0))
    peaks = measure_peaks(threads, *((100_000, 1) if quick else ()))
    calls, whole = timed_step("yolox_nano", size, batch_size, repeats)
    rows = _rows([(call.kind, (call.seconds, call.products, call.moved)) for call in calls], whole, peaks, "bf16")
    kernels = float(rows.pop()["ms"]) / 1e3
    rows.append({"layers": "PyTorch's operators, Python, loss, optimizer", "ms": 1e3 * (whole - kernels)})
    rows[-1]["share"] = (whole - kernels) / whole
    totals = [sum(values) for values in zip(*((call.products, call.moved) for call in calls), strict=True)]
    rows.append(_row("all", len(calls), (whole, totals[0], totals[1]), whole, peaks, "bf16"))
    note = (
        f"Batch {batch_size}, {size} pixels, without the trainer. {_peaks_note(threads, peaks)} Depthwise convolutions "
        "multiply in fp32. Each feature map, gradient and image counts once for each pass that reads or writes it."
    )
    return Part(rows, COLUMNS, {"size": size, "batch_size": batch_size, "threads": threads, "peaks": peaks}, [note])


def _int8(name: str, quick: bool) -> Part:
    experiment, size = ("yolox_nano", 64) if quick else SIZES[name]
    threads, repeats = len(os.sched_getaffinity(0)), 2 if quick else REPEATS
    peaks = measure_peaks(threads, *((100_000, 1) if quick else ()))
    program, timed, at_once = _timed_steps(experiment, size, threads, repeats)
    steps = zip(program.steps, timed, strict=True)
    found = [(_kind(step), (seconds, _products(step), _bytes(step))) for step, seconds in steps]
    rows = _rows(found, sum(timed), peaks, "int8")
    note = (
        f"{_peaks_note(threads, peaks)} Every activation and weight counts once. Random weights. Timed step by step, "
        f"threads wait for each other after each one; at once, the whole network takes {1e3 * at_once:.3f} ms."
    )
    settings = {"model": experiment, "size": size, "threads": threads, "peaks": peaks}
    return Part(rows, COLUMNS, settings, [note])


def _peaks_note(threads: int, peaks: dict[str, float]) -> str:
    return (
        f"Measured peaks of {threads} threads: {peaks['int8'] / 1e9:.0f} billion int8 products a second, "
        f"{peaks['bf16'] / 1e9:.0f} of bf16 and {peaks['fp32'] / 1e9:.0f} of fp32; {peaks['memory'] / 1e9:.1f} GB a "
        "second read from memory, which caches surpass."
    )


def _rows(found: Sequence[tuple[str, Sums]], whole: float, peaks: dict[str, float], precision: str) -> list[Row]:
    """Return a row for each kind of layer, those that take longest first, and one for all of them."""
    groups: dict[str, list[Sums]] = {}
    for kind, sums in found:
        groups.setdefault(kind, []).append(sums)
    rows = [_row(kind, len(group), _total(group), whole, peaks, precision) for kind, group in groups.items()]
    rows.sort(key=lambda row: -float(row["ms"]))
    rows.append(_row("all", len(found), _total([sums for _, sums in found]), whole, peaks, precision))
    return rows


def _total(group: Sequence[Sums]) -> Sums:
    seconds, products, moved = (sum(values) for values in zip(*group, strict=True))
    return seconds, products, moved


def _row(kind: str, number: int, sums: Sums, whole: float, peaks: dict[str, float], precision: str) -> Row:
    seconds, products, moved = sums
    row: dict[str, Any] = {"layers": kind, "number": number, "ms": 1e3 * seconds, "share": seconds / whole}
    row.update(million_products=products / 1e6, megabytes=moved / 1e6, of_memory=moved / seconds / peaks["memory"])
    if products and peaks[precision]:
        row["of_peak"] = products / seconds / peaks[precision]
    return row


def _timed_steps(experiment: str, size: int, threads: int, repeats: int) -> tuple[Program, list[float], float]:
    """Return a program, the median seconds of each of its steps, and those of the whole at once."""
    import torch

    from benchmarks.random_weights import set_statistics_
    from yolox.experiments import get_experiment
    from yolox.inference.backends import get_backend
    from yolox.inference.backends.base import PrepareContext
    from yolox.inference.backends.torch_runner import FlatModule
    from yolox.inference.methods import get_method
    from yolox.kernels.int8.executable import Executable
    from yolox.kernels.int8.storage import load_program
    from yolox.models.decoding import DecodedDetector
    from yolox.models.detector import build_detector

    torch.manual_seed(0)
    module = FlatModule(DecodedDetector(build_detector(get_experiment(experiment).model)))
    noise = torch.randint(0, 256, (4, 3, size, size)).float()
    set_statistics_(module, noise)
    images = noise.numpy()
    with tempfile.TemporaryDirectory(prefix="benchmark-roofline-") as folder:
        context = PrepareContext((images[:1],), ((images,),), threads, Path(folder))
        get_backend("native").prepare(module, get_method("native_int8"), context).save(Path(folder))
        program = load_program(Path(folder))
    executable = Executable(program)
    inputs = (images[:1].astype(np.uint8),)
    executable.run(inputs, 1, threads)
    found = [[second for _, second in executable.step_seconds(inputs, 1, threads)] for _ in range(repeats)]
    whole = np.median([_seconds(partial(executable.run, inputs, 1, threads)) for _ in range(3 * repeats)])
    return program, np.median(found, axis=0).tolist(), float(whole)


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _kind(step: Step) -> str:
    fields = vars(step)
    if "weight" not in fields:
        return type(step).__name__.lower()
    window = "x".join(str(length) for length in fields["weight"].shape[2:])
    kind = "depthwise " if fields["depthwise"] else ""
    height, width = step.size  # type: ignore[attr-defined]
    return f"{kind}{window} convolution, {height}x{width} pixels"


def _products(step: Step) -> float:
    fields = vars(step)
    if "weight" not in fields:
        return 0.0
    height, width = step.size  # type: ignore[attr-defined]
    return float(height * width * fields["weight"].size)


def _bytes(step: Step) -> float:
    """Return the bytes of all that a step reads and writes, each once."""
    total = 0.0
    for value in vars(step).values():
        if isinstance(value, Feature):
            total += value.height * value.width * value.channels
        elif isinstance(value, np.ndarray):
            total += value.nbytes
    return total


if __name__ == "__main__":
    sys.exit(main())
