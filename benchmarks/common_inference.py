"""``python -m benchmarks.common_inference``: ResNet-50 and MobileNetV2 in our int8 engine and in other engines."""

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

from benchmarks.protocol import MakePart, Part, Row, run_benchmark, summary
from yolox.inference.search.latency import interleave

ABOUT = "ResNet-50 and MobileNetV2 with random weights, 224 pixels: ours against the int8 of other engines, by turns."
METHODS = ("native_int8", "openvino_int8", "onnxruntime_fp32")
BATCHES = (1, 16)
ROUNDS, SECONDS = 7, 0.4


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and return its exit code."""
    from benchmarks.common_networks import NETWORKS

    parts: dict[str, MakePart] = {name: partial(_measure, name) for name in NETWORKS}
    return run_benchmark("common_inference", ABOUT, parts, argv)


def prepare_network(name: str, size: int, batch: int) -> tuple[Any, np.ndarray[Any, Any]]:
    """Return a network whose norms have the statistics of some images, and a batch of images.

    Args:
        name: A key of ``common_networks.NETWORKS``.
        size: Pixels of a side.
        batch: Number of images.
    """
    import torch
    from torch import nn

    from benchmarks.common_networks import NETWORKS
    from benchmarks.random_weights import set_statistics_

    torch.manual_seed(0)
    network = NETWORKS[name]()
    coarse = torch.rand(max(batch, 16), 3, size // 8 + 1, size // 8 + 1)
    images = nn.functional.interpolate(coarse, (size, size), mode="bilinear").mul(255).round()
    set_statistics_(network, images[:8])
    return network, images.numpy()


def _measure(name: str, quick: bool) -> Part:
    size, rounds, seconds = (64, 1, 0.05) if quick else (224, ROUNDS, SECONDS)
    network, images = prepare_network(name, size, max(BATCHES))
    threads, methods = len(os.sched_getaffinity(0)), METHODS[:1] if quick else METHODS
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="benchmark-common-") as folder:
        runners = {method: _runner(method, network, images, threads, Path(folder)) for method in methods}
        for batch in BATCHES:
            rows += _rows(runners, network, images[:batch], (rounds, seconds, threads))
    columns = {
        "batch": "{batch}",
        "method": "{method}",
        "p50 ms": "{ms:.2f}",
        "p10": "{p10:.2f}",
        "p90": "{p90:.2f}",
        "images/s": "{rate:.0f}",
        "times native_int8": "{times:.2f}",
        "signal to noise, dB": "{decibels:.1f}",
    }
    settings = {"rounds": rounds, "seconds": seconds, "size": size, "threads": threads}
    return Part(rows, columns, settings, ["Every engine with the fastest of its settings; all in one process."])


def _rows(
    runners: dict[str, Any], network: Any, sample: np.ndarray[Any, Any], settings: tuple[int, float, int]
) -> list[Row]:
    """Return a row for each method at one batch, measured by turns.

    Args:
        runners: By the method's name.
        network: The module itself.
        sample: The batch.
        settings: Rounds, seconds of each turn, threads.
    """
    rounds, seconds, threads = settings
    chosen = {method: _fastest(runner, sample, threads) for method, runner in runners.items()}
    found: dict[str, list[float]] = {method: [] for method in runners}
    for _, method in interleave(list(runners), rounds):
        found[method] += _latencies(chosen[method], sample, seconds)
    ours = _statistics(found["native_int8"], len(sample))
    rows: list[Row] = []
    for method, samples in found.items():
        figures = _statistics(samples, len(sample))
        noise = _signal_to_noise(chosen[method], network, sample)
        more = {"times": figures["ms"] / ours["ms"], "decibels": noise}
        rows.append({"batch": len(sample), "method": method, **figures, **more})
    return rows


def _runner(name: str, network: Any, images: np.ndarray[Any, Any], threads: int, folder: Path) -> Any:
    from yolox.inference.backends import get_backend
    from yolox.inference.backends.base import PrepareContext
    from yolox.inference.backends.torch_runner import FlatModule
    from yolox.inference.methods import get_method

    method = get_method(name)
    work = folder / name
    work.mkdir()
    context = PrepareContext((images,), ((images,),), threads, work)
    return get_backend(method.backend).prepare(FlatModule(network).eval(), method, context)


def _fastest(runner: Any, sample: np.ndarray[Any, Any], threads: int) -> Callable[..., Any]:
    """Return the runner with the settings of the lowest latency among its candidates."""
    times = {}
    for settings in runner.candidates(len(sample), threads):
        one = runner.configured(settings)
        one(sample)
        times[float(np.median(_latencies(one, sample, 0.2)))] = one
    fastest: Callable[..., Any] = times[min(times)]
    return fastest


def _latencies(run: Callable[..., Any], sample: np.ndarray[Any, Any], seconds: float) -> list[float]:
    """Return the milliseconds of runs for some time, three at least, after one that does not count."""
    run(sample)
    found: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(found) < 3:
        start = time.perf_counter()
        run(sample)
        found.append(1e3 * (time.perf_counter() - start))
    return found


def _signal_to_noise(run: Callable[..., Any], network: Any, sample: np.ndarray[Any, Any]) -> float:
    """Return how much stronger the outputs are than their difference to the module's, in decibels."""
    import torch

    with torch.inference_mode():
        wanted = network(torch.from_numpy(sample)).numpy()
    (found,) = run(sample)
    return float(10 * np.log10(np.var(wanted) / max(float(np.square(found - wanted).mean()), 1e-20)))


def _statistics(samples: list[float], batch: int) -> dict[str, float]:
    found = summary(samples)
    return {"ms": found["median"], "p10": found["p10"], "p90": found["p90"], "rate": 1e3 * batch / found["median"]}


if __name__ == "__main__":
    sys.exit(main())
