"""Latency: what is measured, how it is summed up, and when two of them differ."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

Key = TypeVar("Key")


@dataclass(frozen=True)
class Latency:
    """The times of repeated runs of one batch.

    Args:
        samples_ms: One time for each run, in order.
        batch_size: Images in the batch.
    """

    samples_ms: tuple[float, ...]
    batch_size: int

    def __post_init__(self) -> None:
        if not self.samples_ms:
            raise ValueError("a latency needs at least one sample")

    @property
    def median_ms(self) -> float:
        """The median."""
        return float(np.median(self.samples_ms))

    @property
    def p90_ms(self) -> float:
        """Nine runs of ten are at least as fast."""
        return float(np.percentile(self.samples_ms, 90))

    @property
    def spread_ms(self) -> float:
        """Distance between the quartiles: where the middle half of the runs lies."""
        low, high = np.percentile(self.samples_ms, [25, 75])
        return float(high - low)

    @property
    def images_per_second(self) -> float:
        """Throughput at the median."""
        return self.batch_size * 1e3 / self.median_ms

    def merge(self, other: Latency) -> Latency:
        """Return the runs of both.

        Raises:
            ValueError: When the batch sizes differ.
        """
        if other.batch_size != self.batch_size:
            raise ValueError(f"cannot merge latencies of batch {self.batch_size} and batch {other.batch_size}")
        return Latency(self.samples_ms + other.samples_ms, self.batch_size)

    def is_faster_than(self, other: Latency) -> bool:
        """Whether the medians differ by more than half the larger spread; less is noise and is called nothing."""
        return other.median_ms - self.median_ms > max(self.spread_ms, other.spread_ms) / 2


@dataclass(frozen=True)
class MeasurePlan:
    """How long to measure.

    Args:
        rounds: Interleaved rounds.
        samples: Runs of one method over all rounds, at most.
        round_seconds: Time of one method in one round, at most; a slow method still runs ``min_samples`` times.
        min_samples: Timed runs of one method in one round, at least.
        slow_seconds: A method whose timed runs took longer is left out of the third and later rounds.
    """

    rounds: int = 5
    samples: int = 100
    round_seconds: float = 1.2
    min_samples: int = 2
    slow_seconds: float = 20.0

    @property
    def samples_per_round(self) -> int:
        """Runs of one method in one round, at most."""
        return max(1, -(-self.samples // self.rounds))

    def wants_more(self, latency: Latency, rounds_done: int) -> bool:
        """Whether a method with these runs is part of the next round."""
        return rounds_done < 2 or sum(latency.samples_ms) < 1e3 * self.slow_seconds


def measure(run: Callable[[], object], plan: MeasurePlan, *, warmup: int = 1) -> tuple[float, ...]:
    """Time one round of ``run``: ``warmup`` untimed runs, then timed ones until count or time is used up.

    Returns:
        Milliseconds, one for each timed run.
    """
    for _ in range(warmup):
        run()
    samples: list[float] = []
    spent = 0.0
    while len(samples) < plan.samples_per_round and (
        spent < plan.round_seconds or len(samples) < min(plan.min_samples, plan.samples_per_round)
    ):
        start = time.perf_counter()
        run()
        elapsed = time.perf_counter() - start
        samples.append(elapsed * 1e3)
        spent += elapsed
    return tuple(samples)


def interleave(keys: Sequence[Key], rounds: int) -> Iterator[tuple[int, Key]]:
    """Yield ``(round, key)`` so that every round visits all keys, each round in the opposite direction.

    Drift of the machine then hits all methods alike, and no method always follows the same other one.
    """
    for number in range(rounds):
        for key in keys if number % 2 == 0 else reversed(keys):
            yield number, key
