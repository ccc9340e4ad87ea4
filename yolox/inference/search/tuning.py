"""Search of threads, streams, pieces and layout by timing them, within a time budget."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from yolox.inference.backends.base import Arrays, Runner, Settings

SLOWER = 1.25
"""A layout this many times slower than the best at first sight is not tried in other combinations."""


@dataclass(frozen=True)
class Trial:
    """One setting that was timed."""

    settings: Settings
    latency_ms: float


def tune(
    runner: Runner, inputs: Arrays, threads: int, budget_s: float, progress: Callable[[str], None]
) -> tuple[Runner, tuple[Trial, ...]]:
    """Return the runner with its fastest settings and the trials, best first.

    Args:
        runner: The prepared model.
        inputs: The batch to time.
        threads: Cores that may be used.
        budget_s: Start no further trial after this time.
        progress: Told about each trial.
    """
    start = time.monotonic()
    trials: list[Trial] = []
    slow_layouts: set[bool] = set()
    for settings in runner.candidates(len(inputs[0]), threads):
        if settings.channels_last in slow_layouts:
            continue
        if trials and time.monotonic() - start > budget_s:
            progress(f"tuning stopped after {budget_s:.0f} s")
            break
        trial = Trial(settings, _time_ms(runner.configured(settings), inputs))
        progress(f"tuning: {trial.latency_ms:.1f} ms with {settings}")
        trials.append(trial)
        best = min(item.latency_ms for item in trials)
        slow_layouts |= {item.settings.channels_last for item in trials if item.latency_ms > SLOWER * best} - {
            item.settings.channels_last for item in trials if item.latency_ms <= SLOWER * best
        }
    ranking = tuple(sorted(trials, key=lambda trial: trial.latency_ms))
    chosen = ranking[0].settings if ranking else runner.settings
    return (runner if chosen == runner.settings else runner.configured(chosen)), ranking


def _time_ms(runner: Runner, inputs: Arrays) -> float:
    """Return the smaller of a few runs: interference only ever adds time."""
    runner(*inputs)
    samples: list[float] = []
    begin = time.perf_counter()
    while len(samples) < 2 or (time.perf_counter() - begin < 0.2 and len(samples) < 20):
        start = time.perf_counter()
        runner(*inputs)
        samples.append((time.perf_counter() - start) * 1e3)
    return float(np.min(samples) if len(samples) < 5 else np.median(samples))
