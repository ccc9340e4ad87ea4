"""The run over all methods: one process each, prepared one after the other, measured in interleaved rounds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from yolox.cpu.machine import read_machine
from yolox.errors import UsageError, YoloxError
from yolox.inference.backends import BACKENDS
from yolox.inference.backends.base import Method
from yolox.inference.methods import missing_package
from yolox.inference.search.latency import Latency, MeasurePlan, interleave
from yolox.inference.search.method_process import MethodFailure, MethodProcess
from yolox.inference.search.protocol import Job, Limits, Measured, Ready, Samples, Status
from yolox.inference.search.results import MethodResult
from yolox.precision_names import Precision

ROUND_SECONDS_LIMIT = 300.0
PREPARED_TOGETHER = 2
RUN_ORDER = ("eager", "native", "openvino", "onnxruntime", "jit", "ipex", "inductor")
"""Quick conversions first: a short time budget then still gives most rows."""


@dataclass(frozen=True)
class Listener:
    """Who hears what goes on.

    Args:
        on_progress: Method name and a few words.
        on_result: Each row as soon as it has its first latency or its failure.
    """

    on_progress: Callable[[str, str], None] = lambda method, message: None
    on_result: Callable[[MethodResult], None] = lambda result: None


@dataclass(frozen=True)
class SearchOptions:
    """How a run is done.

    Args:
        threads: Cores to use.
        limits: How long it may take.
        plan: How latency is measured.
        metadata: The user's values for the artifacts.
    """

    threads: int
    limits: Limits = field(default_factory=Limits)
    plan: MeasurePlan = field(default_factory=MeasurePlan)
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Search:
    """Runs the methods. ``results`` holds the finished rows at any time, also after an interruption.

    Args:
        methods: What to run, ``original`` first.
        folder: Where ``payload`` lies, with empty ``artifacts``, ``logs`` and ``tmp`` beside it.
        batch_size: Rows of the sample.
        options: How the run is done.
        listener: Who hears what goes on.
    """

    def __init__(
        self, methods: tuple[Method, ...], folder: Path, batch_size: int, options: SearchOptions, listener: Listener
    ) -> None:
        self._methods = methods
        self._folder = folder
        self._batch_size = batch_size
        self._options, self._limits = options, options.limits
        self._listener = listener
        self._began = time.monotonic()
        self._processes: dict[str, MethodProcess] = {}
        self._facts: Mapping[str, Any] = {}
        self.results: dict[str, MethodResult] = {}

    def run(self) -> None:
        """Run everything; ``results`` fills up meanwhile.

        Raises:
            UsageError: When the original itself does not run.
        """
        try:
            for group in self._groups():
                # converting is mostly work of one thread; measuring is done by one process at a time
                started = [self._start(method) for method in group]
                prepared = [self._await_prepared(item) for item in started]
                for item in prepared:
                    self._finish_row(self._measure_first(item) if isinstance(item, MethodProcess) else item)
            self._measure_rounds()
        finally:
            for process in self._processes.values():
                process.stop()

    def _groups(self) -> Iterator[tuple[Method, ...]]:
        """Yield the original alone, then so many methods as are prepared side by side."""
        first, *rest = self._methods
        yield (first,)
        software = {Precision.BF16} if not read_machine().has_bf16 else set()  # minutes for one batch
        rest.sort(key=lambda method: (method.precision in software, RUN_ORDER.index(method.backend)))
        size = min(PREPARED_TOGETHER, self._options.threads)
        for start in range(0, len(rest), size):
            yield tuple(rest[start : start + size])

    def _finish_row(self, result: MethodResult) -> None:
        self.results[result.name] = result
        self._listener.on_result(result)
        if result.name == "original" and not result.successful:
            raise UsageError(f"the original model does not run: {result.reason} Its log: {result.log}.")

    def _start(self, method: Method) -> MethodProcess | MethodResult:
        missing = missing_package(method)
        if missing is not None:
            return MethodResult(method, Status.LACK_DEPENDENCY, str(missing))
        seconds = min(self._limits.method_seconds, self._seconds_left())
        if seconds <= 0:
            reason = f"the time budget of {self._limits.time_budget:.0f} s was used up before its turn"
            return MethodResult(method, Status.EARLY_STOPPED, reason)
        self._listener.on_progress(method.name, "starting")
        try:
            interpreter = _interpreter(method)
        except YoloxError as error:  # none there, or the one that the user named is of no use
            return MethodResult(method, Status.LACK_DEPENDENCY, str(error))
        process = MethodProcess(method, self._job(method, seconds), self._log(method), interpreter)
        self._processes[method.name] = process
        return process

    def _await_prepared(self, item: MethodProcess | MethodResult) -> MethodProcess | MethodResult:
        """Wait until the conversion is done."""
        if isinstance(item, MethodResult):
            return item
        try:
            # a sibling may have used up this one's time while it was waited for; what is done by then counts
            item.await_prepared(max(5.0, min(self._limits.method_seconds, self._seconds_left())), self._teller(item))
        except MethodFailure as failure:
            return self._failed(item, failure)
        return item

    def _measure_first(self, process: MethodProcess) -> MethodResult:
        """Let a prepared method tune and measure its accuracy, and run its first round."""
        try:
            seconds = max(60.0, min(self._limits.method_seconds, self._seconds_left()))
            ready = process.finish(seconds, self._teller(process))
            row = replace(self._row_of(process.method, ready), log=self._log(process.method))
            if ready.slow_ms:
                process.stop()
                return row
            samples = process.measure(self._options.plan, ROUND_SECONDS_LIMIT)
        except MethodFailure as failure:
            return self._failed(process, failure)
        self._facts = ready.facts or self._facts
        return self._with_samples(row, samples)

    def _teller(self, process: MethodProcess) -> Callable[[str], None]:
        return lambda text: self._listener.on_progress(process.method.name, text)

    def _failed(self, process: MethodProcess, failure: MethodFailure) -> MethodResult:
        method = process.method
        self._processes.pop(method.name)
        status, reason, log = failure.status, failure.reason, self._log(method)
        if failure.timed_out and self._seconds_left() <= 0:
            status = Status.EARLY_STOPPED
            reason = f"the time budget of {self._limits.time_budget:.0f} s was used up while {process.stage.value}"
        return MethodResult(method, status, reason, peak_memory_mb=failure.peak_memory_mb, log=log)

    def _log(self, method: Method) -> Path:
        return self._folder / "logs" / f"{method.name}.log"

    def _row_of(self, method: Method, ready: Ready) -> MethodResult:
        return MethodResult(
            method,
            Status.EARLY_STOPPED if ready.slow_ms else Status.SUCCESSFUL,
            "more than 12 times as slow as the original" if ready.slow_ms else ready.note,
            latency=Latency(ready.slow_ms, self._batch_size) if ready.slow_ms else None,
            artifact=None if ready.size_mb is None else self._folder / "artifacts" / method.name,
            **{item.name: getattr(ready, item.name) for item in fields(Measured)},
        )

    def _with_samples(self, row: MethodResult, samples: Samples) -> MethodResult:
        new = Latency(samples.samples_ms, self._batch_size)
        latency = row.latency.merge(new) if row.latency else new
        others = max(row.other_cores or 0.0, samples.other_cores or 0.0)
        return replace(row, latency=latency, peak_memory_mb=samples.peak_memory_mb, other_cores=others)

    def _measure_rounds(self) -> None:
        """Measure the remaining rounds; the time budget may cut them short, never the first."""
        names = [name for name, result in self.results.items() if result.successful and name in self._processes]
        for number, name in interleave(names, self._options.plan.rounds - 1):
            row, plan = self.results[name], self._options.plan
            if name not in self._processes or self._seconds_left() <= 0:
                continue
            if row.latency is not None and not plan.wants_more(row.latency, number + 1):
                continue
            self._listener.on_progress(name, f"measuring, round {number + 2} of {plan.rounds}")
            try:
                message = self._processes[name].measure(plan, ROUND_SECONDS_LIMIT)
                self.results[name] = self._with_samples(row, message)
            except MethodFailure as failure:
                self._processes.pop(name)
                self.results[name] = replace(row, status=Status.FAIL_TO_FORWARD, reason=failure.reason)

    def _job(self, method: Method, seconds: float) -> Job:
        original = self.results.get("original")
        return Job(
            method=method.name,
            payload=str(self._folder / "payload"),
            artifact=str(self._folder / "artifacts" / method.name),
            work_dir=str(self._folder / "tmp" / method.name),
            threads=self._options.threads,
            prepare_threads=max(1, self._options.threads // PREPARED_TOGETHER),
            prepare_seconds=0.6 * seconds,
            limits=self._limits,
            baseline_ms=original.latency.median_ms if original and original.latency else None,
            original_scores=original.metrics if original else {},
            facts=self._facts,
            metadata=self._options.metadata,
        )

    def _seconds_left(self) -> float:
        if self._limits.time_budget is None:
            return float("inf")
        return self._limits.time_budget - (time.monotonic() - self._began)


def _interpreter(method: Method) -> str:
    """Return the Python that runs the method: another one than ours for IPEX, which needs an older PyTorch."""
    return str(import_module(BACKENDS["ipex"]).interpreter()) if method.uses_ipex else sys.executable
