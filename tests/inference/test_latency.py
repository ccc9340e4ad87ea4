from __future__ import annotations

import time

import pytest

from yolox.inference.search.latency import Latency, MeasurePlan, interleave, measure


def test_summary_numbers() -> None:
    latency = Latency(tuple(float(value) for value in range(1, 11)), batch_size=4)
    assert latency.median_ms == 5.5
    assert latency.p90_ms == pytest.approx(9.1)
    assert latency.spread_ms == pytest.approx(4.5)
    assert latency.images_per_second == pytest.approx(4000 / 5.5)


def test_merge_joins_the_samples_of_one_batch_size() -> None:
    assert Latency((1.0,), 2).merge(Latency((3.0, 5.0), 2)).samples_ms == (1.0, 3.0, 5.0)
    with pytest.raises(ValueError, match="batch 2 and batch 1"):
        Latency((1.0,), 2).merge(Latency((1.0,), 1))
    with pytest.raises(ValueError, match="at least one"):
        Latency((), 1)


def test_a_difference_within_the_spread_is_nothing() -> None:
    noisy, steady = Latency((8.0, 10.0, 12.0), 1), Latency((9.9, 10.0, 10.1), 1)
    slightly, clearly = Latency((9.0, 9.1, 9.2), 1), Latency((4.0, 5.0, 6.0), 1)
    assert not slightly.is_faster_than(noisy)
    assert slightly.is_faster_than(steady)
    assert clearly.is_faster_than(noisy)
    assert not noisy.is_faster_than(clearly)


def test_rounds_visit_all_and_turn_round() -> None:
    assert list(interleave(["a", "b"], 3)) == [(0, "a"), (0, "b"), (1, "b"), (1, "a"), (2, "a"), (2, "b")]


def test_measure_warms_up_and_keeps_to_count_and_time() -> None:
    calls: list[float] = []
    plan = MeasurePlan(rounds=2, samples=10, round_seconds=5.0)
    assert len(measure(lambda: calls.append(0.0), plan, warmup=3)) == 5
    assert len(calls) == 8
    slow = MeasurePlan(rounds=1, samples=100, round_seconds=0.01, min_samples=2)
    samples = measure(lambda: time.sleep(0.02), slow)
    assert len(samples) == 2
    assert min(samples) >= 20


def test_slow_methods_are_left_out_of_later_rounds() -> None:
    plan = MeasurePlan(slow_seconds=10.0)
    quick, slow = Latency((100.0,) * 20, 4), Latency((6000.0, 6000.0), 4)
    assert [plan.wants_more(quick, done) for done in (1, 2, 4)] == [True, True, True]
    assert [plan.wants_more(slow, done) for done in (1, 2, 4)] == [True, False, False]
