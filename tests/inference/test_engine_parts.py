"""Small parts: nested outputs, pieces of a batch, tuning, the report, a process that is too slow."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from yolox.errors import UsageError
from yolox.inference.artifacts.structure import describe, flatten, unflatten
from yolox.inference.backends.base import Arrays, Settings, run_in_chunks
from yolox.inference.methods import get_method
from yolox.inference.search.latency import Latency
from yolox.inference.search.method_process import MethodFailure, MethodProcess
from yolox.inference.search.protocol import Job, Status
from yolox.inference.search.results import MethodResult, OptimizationReport
from yolox.inference.search.tuning import tune


class Pair(NamedTuple):
    first: Any
    second: Any


@pytest.mark.parametrize(
    "value",
    [
        np.ones(2),
        (np.ones(1), np.zeros(2)),
        [np.ones(1), {"a": np.zeros(2), "b": (np.ones(3), 4, "x", None)}],
        OrderedDict(z=np.ones(1), a=np.zeros(1)),
    ],
)
def test_nested_outputs_fold_back(value: Any) -> None:
    assert repr(unflatten(describe(value), flatten(value))).replace("OrderedDict(", "") == repr(
        dict(value) if isinstance(value, OrderedDict) else value
    )


def test_named_tuples_become_tuples_and_odd_things_are_refused() -> None:
    value = Pair(torch.ones(1), torch.zeros(1))
    assert unflatten(describe(value), (1, 2)) == (1, 2)
    assert unflatten(None, [1, 2]) == (1, 2)
    with pytest.raises(UsageError, match="returns a set"):
        describe({1, 2})


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("size", [None, 1, 2, 3, 5, 7, 9])
@pytest.mark.parametrize("pad", [False, True])
def test_pieces_equal_the_whole(kind: str, size: int | None, pad: bool) -> None:
    lengths: list[int] = []

    def run(x: Any, y: Any) -> Arrays:
        lengths.append(len(x))
        return x * 2, y + 1

    x, y = np.arange(14.0).reshape(7, 2), np.arange(7.0)
    inputs = (x, y) if kind == "numpy" else (torch.from_numpy(x), torch.from_numpy(y))
    first, second = run_in_chunks(run, inputs, size, pad=pad)
    np.testing.assert_array_equal(np.asarray(first), x * 2)
    np.testing.assert_array_equal(np.asarray(second), y + 1)
    if pad and size is not None:
        assert set(lengths) == {size}


@dataclass(frozen=True)
class FakeRunner:
    settings: Settings
    calls: list[Settings]
    int8_share: float | None = None

    def __call__(self, *inputs: Any) -> Arrays:
        self.calls.append(self.settings)
        slow = 0.004 if self.settings.channels_last else 0.001
        time.sleep(slow + (0.0 if self.settings.micro_batch == 2 else 0.002))
        return inputs

    def candidates(self, batch_size: int, threads: int) -> list[Settings]:
        return [Settings(threads, 1, size, layout) for size in (None, 4, 2) for layout in (False, True)]

    def configured(self, settings: Settings) -> FakeRunner:
        return replace(self, settings=settings)

    def save(self, folder: Path) -> dict[str, Any]:
        return {}


def test_the_tuner_finds_the_fastest_and_drops_a_slow_layout_early() -> None:
    runner = FakeRunner(Settings(), [])
    best, trials = tune(runner, (np.ones(8),), 1, 60.0, lambda message: None)
    assert best.settings == Settings(1, 1, 2, False)
    assert [settings.channels_last for settings in trials].count(True) == 1
    assert trials[best.settings] == min(trials.values())


def test_the_tuner_keeps_to_its_budget() -> None:
    runner = FakeRunner(Settings(), [])
    _, trials = tune(runner, (np.ones(8),), 1, 0.0, lambda message: None)
    assert len(trials) == 1


def row(name: str, ms: float | None, quality: float | None, noise: float = 0.0) -> MethodResult:
    latency = None if ms is None else Latency((ms - noise, ms, ms + noise), 4)
    status = Status.SUCCESSFUL if ms is not None else Status.FAIL_TO_CONVERT
    metrics = {} if quality is None else {"AP": quality}
    return MethodResult(get_method(name), status, latency=latency, metrics=metrics)


def test_the_best_row_is_the_fastest_within_the_drop_from_the_original() -> None:
    rows = (
        row("original", 100, 0.40),
        row("bf16", 50, 0.396),
        row("openvino_int8", 20, 0.36),
        row("jit_fp32", 90, None),
    )
    report = OptimizationReport((*rows, row("jit_int8", None, None)), ("AP",))
    assert report.best(0.01) is rows[1]
    assert report.best(0.1) is rows[2]
    assert report.best(0.001) is rows[0]
    assert report.best() is rows[2]
    assert report.drop(rows[2]) == pytest.approx(0.04)
    assert report.drop(rows[3]) is None
    smaller = replace(report, direction="min")
    assert smaller.drop(rows[1]) == pytest.approx(-0.004)
    assert smaller.best(0.0) is rows[2]


def test_a_row_within_the_noise_of_the_original_is_not_the_best() -> None:
    rows = (row("original", 100, 0.4, noise=30), row("bf16", 95, 0.4, noise=30))
    report = OptimizationReport(rows, ("AP",))
    assert report.best(0.01) is rows[0]
    assert report.ties(rows[1]) == (rows[0],)


def test_without_a_metric_speed_decides_and_nothing_is_pretended() -> None:
    rows = (row("original", 100, None), row("bf16", 50, None))
    report = OptimizationReport(rows)
    assert report.best() is rows[1]
    assert "AP" not in report.to_text()
    asked = replace(report, metric_names=("AP",))
    assert asked.rows()[1]["AP"] is None
    assert asked.best(0.01) is rows[0]


def test_a_table_of_a_busy_machine_says_so() -> None:
    quiet, busy = replace(row("original", 100, None), other_cores=0.05), replace(row("bf16", 9, None), other_cores=1.46)
    assert "other processes" not in OptimizationReport((quiet, row("jit_fp32", 90, None))).to_text()
    report = OptimizationReport((quiet, busy))
    assert "other processes used up to 1.5 cores while times were taken (bf16)" in report.to_text()
    assert [item["other_cores"] for item in report.rows()] == [0.05, 1.46]


@pytest.mark.processes
def test_a_process_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    job = Job("original", str(tmp_path), str(tmp_path / "artifact"), str(tmp_path / "tmp"), threads=1)
    process = MethodProcess(get_method("original"), job, tmp_path / "log.txt")
    start = time.monotonic()
    with pytest.raises(MethodFailure, match="stopped after 0 s while starting") as caught:
        process.await_prepared(0.05)
    assert caught.value.timed_out
    assert time.monotonic() - start < 10
    assert process.ended
    process.stop()


def test_a_drop_carries_the_interval_of_the_block_jackknife() -> None:
    without = (0.40, 0.42, 0.41, 0.43)
    original = replace(row("original", 100, 0.41), leave_one_out=without)
    shifted = replace(row("bf16", 50, 0.40), leave_one_out=tuple(value - 0.01 for value in without))
    noisy = replace(row("openvino_int8", 20, 0.40), leave_one_out=(0.40, 0.40, 0.41, 0.41))
    report = OptimizationReport((original, shifted, noisy, row("jit_fp32", 90, 0.41)), ("AP",))
    assert report.drop_margin(shifted) == pytest.approx(0.0, abs=1e-12), "what all blocks lose alike is sure"
    drops = np.array(without) - np.array(noisy.leave_one_out)
    error = np.sqrt(3 / 4 * np.square(drops - drops.mean()).sum())
    assert report.drop_margin(noisy) == pytest.approx((1.96 + 2.72 / 3) * error)
    assert report.drop_margin(report["jit_fp32"]) is None
    assert "±0.0" in report.to_text()
    assert report.rows()[2]["drop_margin"] == pytest.approx(report.drop_margin(noisy), abs=1e-5)


def test_rows_beyond_the_drop_are_no_ties() -> None:
    rows = (row("original", 100, 0.4), row("bf16", 50, 0.4, 5), row("openvino_int8", 51, 0.1, 5))
    report = OptimizationReport(rows, ("AP",))
    assert report.ties(rows[1]) == (rows[2],)
    assert report.ties(rows[1], 0.01) == ()
