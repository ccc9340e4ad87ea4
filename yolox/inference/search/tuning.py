"""Search of threads, streams, pieces and layout by timing them, within a time budget."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np

from yolox.inference.backends.base import Arrays, Runner, Settings
from yolox.inference.search.latency import MeasurePlan, measure

SLOWER = 1.25
"""A layout this many times slower than the best at first sight is not tried in other combinations."""

TRIAL = MeasurePlan(rounds=1, samples=20, round_seconds=0.2)


def tune(
    runner: Runner, inputs: Arrays, threads: int, budget_s: float, progress: Callable[[str], None]
) -> tuple[Runner, dict[Settings, float]]:
    """Return the runner with its fastest settings, and the milliseconds of all that were tried.

    Args:
        runner: The prepared model.
        inputs: The batch to time.
        threads: Cores that may be used.
        budget_s: Start no further trial after this time.
        progress: Told about each trial.
    """
    start = time.monotonic()
    trials: dict[Settings, float] = {}
    slow_layouts: set[bool] = set()
    for settings in runner.candidates(len(inputs[0]), threads):
        if settings.channels_last in slow_layouts:
            continue
        if trials and time.monotonic() - start > budget_s:
            progress(f"tuning stopped after {budget_s:.0f} s")
            break
        times = measure(partial(runner.configured(settings), *inputs), TRIAL)
        # the smaller of a few runs: interference only ever adds time
        trials[settings] = float(np.min(times) if len(times) < 5 else np.median(times))
        progress(f"tuning: {trials[settings]:.1f} ms with {settings}")
        limit = SLOWER * min(trials.values())
        fast = {tried.channels_last for tried, latency in trials.items() if latency <= limit}
        slow_layouts |= {tried.channels_last for tried in trials} - fast
    chosen = min(trials, key=trials.__getitem__, default=runner.settings)
    return (runner if chosen == runner.settings else runner.configured(chosen)), trials
