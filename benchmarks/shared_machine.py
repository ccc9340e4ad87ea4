"""``python -m benchmarks.shared_machine``: the int8 engine beside processes that want the same cores."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.checkouts import CheckoutProcess
from benchmarks.protocol import ROOT, Part, run_benchmark

ABOUT = "native_int8, one image at a time, alone and beside busy processes, as on a machine that is shared."
NEIGHBOURS = (0, 1, 2)
ROUNDS, SECONDS = 4, 2.0
BUSY = "while True: pass"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and return its exit code; one of its own processes with ``--serve``."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--serve", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--against", type=Path, help="a checkout of another state, measured by turns with this one")
    known, rest = parser.parse_known_args(argv)
    if known.serve is not None:
        return _serve(known.serve, known.threads)
    return run_benchmark("shared_machine", ABOUT, {"nano-b1": partial(_measure, known.against)}, rest)


def _measure(against: Path | None, quick: bool) -> Part:
    threads = len(os.sched_getaffinity(0))
    size, rounds, seconds = (64, 1, 0.1) if quick else (416, ROUNDS, SECONDS)
    sides = {f"{count} threads": (ROOT, count) for count in (threads, 1)}
    if against is not None:
        sides[f"{threads} threads, {against.name}"] = (against.resolve(), threads)
    found: dict[tuple[str, int], list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="benchmark-shared-") as folder, ExitStack() as stack:
        save_program(Path(folder), size)
        command = ["-m", "benchmarks.shared_machine", "--serve", folder, "--threads"]
        living = {
            name: stack.enter_context(CheckoutProcess(source, [*command, str(count)]))
            for name, (source, count) in sides.items()
        }
        for turn in range(rounds):
            for neighbours in NEIGHBOURS:
                with _busy(neighbours):
                    for name in list(living)[:: -1 if turn % 2 else 1]:
                        found.setdefault((name, neighbours), []).extend(living[name].ask(seconds))
    rows = [_row(name, {count: found[name, count] for count in NEIGHBOURS}) for name in sides]
    columns = {"side": "{side}"}
    for count in NEIGHBOURS:
        title = "quiet" if count == 0 else f"beside {count}"
        columns |= {f"{title}, {key} ms": f"{{{key}_{count}:.2f}}" for key in ("p50", "mean", "p99")}
        columns |= {f"{title}, times quiet": f"{{times_{count}:.2f}}"} if count else {}
    notes = (
        f"YOLOX-Nano with random weights, {size} pixels; busy processes compute without a pause and are not bound.",
        "An image may be done within one time slice: the median then says little of the waits, the mean does.",
    )
    return Part(rows, columns, {"rounds": rounds, "seconds": seconds}, notes)


def _row(side: str, latencies: dict[int, list[float]]) -> dict[str, float | str]:
    row: dict[str, float | str] = {"side": side}
    for count, samples in latencies.items():
        row |= {f"p50_{count}": float(np.median(samples)), f"p99_{count}": float(np.percentile(samples, 99))}
        row[f"mean_{count}"] = float(np.mean(samples))
        row[f"times_{count}"] = float(np.median(samples) / np.median(latencies[0]))
    return row


def save_program(folder: Path, size: int) -> None:
    """Write an 8-bit YOLOX-Nano with random weights."""
    import torch

    from benchmarks.random_weights import set_statistics_
    from yolox.experiments import get_experiment
    from yolox.inference.backends import get_backend
    from yolox.inference.backends.base import PrepareContext
    from yolox.inference.backends.torch_runner import FlatModule
    from yolox.inference.methods import get_method
    from yolox.models.decoding import DecodedDetector
    from yolox.models.detector import build_detector

    torch.manual_seed(0)
    module = FlatModule(DecodedDetector(build_detector(get_experiment("yolox_nano").model)))
    images = torch.randint(0, 256, (4, 3, size, size)).float()
    set_statistics_(module, images)
    context = PrepareContext((images[:1].numpy(),), ((images.numpy(),),), 1, folder)
    get_backend("native").prepare(module, get_method("native_int8"), context).save(folder)


def open_program(folder: Path, threads: int) -> Callable[[], object]:
    """Return what runs a saved 8-bit program on one image of noise."""
    from yolox.kernels.int8.executable import Executable
    from yolox.kernels.int8.storage import load_program

    program = load_program(folder)
    images = tuple(np.random.default_rng(0).integers(0, 256, (1, *size), np.uint8) for size in program.inputs)
    return partial(Executable(program).run, images, 1, threads)


def _serve(folder: Path, threads: int) -> int:
    """Answer each number of seconds on the standard input with the milliseconds of so many runs."""
    run = open_program(folder, threads)
    for _ in range(20):
        run()
    for line in sys.stdin:
        end, found = time.perf_counter() + float(line), []
        while time.perf_counter() < end:
            start = time.perf_counter()
            run()
            found.append(1e3 * (time.perf_counter() - start))
        print(json.dumps(found), flush=True)
    return 0


@contextmanager
def _busy(count: int) -> Iterator[None]:
    """Keep so many processes busy."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        time.sleep(0.3)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


if __name__ == "__main__":
    sys.exit(main())
