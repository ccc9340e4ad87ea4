"""What came out of a run: one result for each method, and the report on all of them."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolox.inference.backends.base import Method
from yolox.inference.search.latency import Latency
from yolox.inference.search.protocol import Measured, Status
from yolox.tables import markdown_table, text_table

_NORMAL_975, _STUDENT = 1.96, 2.72
"""1.96 + 2.72 / n is Student's t for n degrees of freedom at 97.5 %, to 0.1 from five on."""

_QUIET_CORES = 0.25
"""Cores' worth of other processes that are not worth a word."""


@dataclass(frozen=True)
class MethodResult(Measured):
    """One row. Every number was measured for this row, or is ``None``.

    Args:
        method: The method.
        status: How it ended.
        reason: One line: why it is not successful, or what to know about it; empty when there is nothing to say.
        latency: Times of the sample batch.
        other_cores: Cores that other processes used during one of its rounds, at most.
        artifact: Folder of its artifact, ``None`` when there is none.
        log: File with all that its process printed.
    """

    method: Method
    status: Status
    reason: str = ""
    latency: Latency | None = None
    other_cores: float | None = None
    artifact: Path | None = None
    log: Path | None = None

    @property
    def name(self) -> str:
        """Name of the method."""
        return self.method.name

    @property
    def successful(self) -> bool:
        """Whether the row may be chosen as the best."""
        return self.status is Status.SUCCESSFUL and self.latency is not None


@dataclass(frozen=True)
class OptimizationReport:
    """All rows, ``original`` first.

    Args:
        results: The rows.
        metric_names: Names of the metric columns, the decisive one first; empty without a metric.
        direction: ``max`` when a larger metric is better, else ``min``.
        seconds: Time the whole run took.
    """

    results: tuple[MethodResult, ...]
    metric_names: tuple[str, ...] = ()
    direction: str = "max"
    seconds: float = 0.0

    def __iter__(self) -> Iterator[MethodResult]:
        return iter(self.results)

    def __getitem__(self, name: str) -> MethodResult:
        for result in self.results:
            if result.name == name:
                return result
        raise KeyError(name)

    @property
    def original(self) -> MethodResult | None:
        """The row of the model as it is, if it was measured."""
        return next((result for result in self.results if result.name == "original"), None)

    def drop(self, result: MethodResult) -> float | None:
        """Return how much of the decisive metric ``result`` loses against the original (negative: it gains)."""
        if not self.metric_names or self.original is None:
            return None
        name = self.metric_names[0]
        before, after = self.original.metrics.get(name), result.metrics.get(name)
        if before is None or after is None:
            return None
        return before - after if self.direction == "max" else after - before

    def drop_margin(self, result: MethodResult) -> float | None:
        """Return how far the drop may be off: half the width of its 95 % interval, by the block jackknife.

        The drop is computed again without each block of the validation data, for both models without the same block.
        ``None`` where the metric does not tell the blocks.

        Source: Efron and Tibshirani, An Introduction to the Bootstrap, chapter 11.
        """
        original = self.original
        if original is None or len(result.leave_one_out) < 2:
            return None
        if len(result.leave_one_out) != len(original.leave_one_out):
            return None
        pairs = zip(original.leave_one_out, result.leave_one_out, strict=True)
        drops = [before - after for before, after in pairs]
        count, mean = len(drops), sum(drops) / len(drops)
        error = math.sqrt((count - 1) / count * sum((drop - mean) ** 2 for drop in drops))
        return (_NORMAL_975 + _STUDENT / (count - 1)) * error

    def speedup(self, result: MethodResult) -> float | None:
        """Return how many times as fast as the original ``result`` is."""
        if result.latency is None or self.original is None or self.original.latency is None:
            return None
        return self.original.latency.median_ms / result.latency.median_ms

    def candidates(self, max_drop: float | None) -> tuple[MethodResult, ...]:
        """Return the successful rows that lose at most ``max_drop``, fastest first.

        With a metric, a row whose drop is unknown never counts as within a bound.
        """
        fitting = []
        for result in self.results:
            drop = self.drop(result)
            within = max_drop is None or not self.metric_names or (drop is not None and drop <= max_drop)
            if result.successful and (within or result.name == "original"):
                fitting.append(result)
        return tuple(sorted(fitting, key=_median_ms))

    def best(self, max_drop: float | None = None) -> MethodResult | None:
        """Return the fastest successful row that loses at most ``max_drop`` of the decisive metric.

        The original stays the best when nothing beats it by more than the spread of the measurement.
        """
        fitting = self.candidates(max_drop)
        if not fitting:
            return None
        fastest, original = fitting[0], self.original
        if (
            fastest.latency is not None
            and original in fitting
            and original is not None
            and original.latency is not None
        ):
            return fastest if fastest.latency.is_faster_than(original.latency) else original
        return fastest

    def ties(self, result: MethodResult, max_drop: float | None = None) -> tuple[MethodResult, ...]:
        """Return the other rows within ``max_drop`` whose latency differs from ``result``'s by the spread at most."""
        return tuple(
            other
            for other in self.candidates(max_drop)
            if other is not result and other.latency and result.latency
            if not result.latency.is_faster_than(other.latency) and not other.latency.is_faster_than(result.latency)
        )

    def rows(self) -> list[dict[str, Any]]:
        """Return one flat mapping of JSON values for each row."""
        return [self._row(result) for result in self.results]

    def _row(self, result: MethodResult) -> dict[str, Any]:
        latency = result.latency
        return {
            "method": result.name,
            "status": result.status.value,
            "reason": result.reason,
            "latency_ms": latency and round(latency.median_ms, 3),
            "p90_ms": latency and round(latency.p90_ms, 3),
            "spread_ms": latency and round(latency.spread_ms, 3),
            "samples": len(latency.samples_ms) if latency else 0,
            "other_cores": _rounded(result.other_cores, 2),
            "images_per_second": latency and round(latency.images_per_second, 3),
            "speedup": _rounded(self.speedup(result), 3),
            **{name: _rounded(result.metrics.get(name), 5) for name in self.metric_names},
            "drop": _rounded(self.drop(result), 5),
            "drop_margin": _rounded(self.drop_margin(result), 5),
            "size_mb": _rounded(result.size_mb, 3),
            "peak_memory_mb": _rounded(result.peak_memory_mb, 1),
            "int8_share": _rounded(result.int8_share, 4),
            "max_difference": result.max_difference,
            "settings": result.settings.as_dict() if result.settings else None,
        }

    def to_json(self, **extra: Any) -> str:
        """Return ``{"rows": [...], "best": name, ...extra}`` as JSON text."""
        best = self.best()
        head = {"best": best.name if best else None, "seconds": round(self.seconds, 1), **extra}
        return json.dumps({**head, "rows": self.rows()}, indent=2, allow_nan=False) + "\n"

    def to_csv(self) -> str:
        """Return the rows as CSV text; settings are one JSON cell."""
        rows = [{**row, "settings": json.dumps(row["settings"])} for row in self.rows()]
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else ["method"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def to_markdown(self) -> str:
        """Return the table as Markdown."""
        return markdown_table(*self._cells(), left=(0, 1)) + "\n"

    def to_text(self) -> str:
        """Return the table for a terminal, with the reasons of unsuccessful rows below it."""
        lines = [text_table(*self._cells(), left=(0, 1))]
        lines += [f"{result.name}: {result.reason}" for result in self.results if result.reason]
        lines += self._disturbance()
        return "\n".join(lines)

    def _disturbance(self) -> list[str]:
        """Return a line where other processes computed while the times were taken."""
        disturbed = {row.name: row.other_cores for row in self.results if row.other_cores is not None}
        disturbed = {name: cores for name, cores in disturbed.items() if cores > _QUIET_CORES}
        if not disturbed:
            return []
        return [
            f"other processes used up to {max(disturbed.values()):.1f} cores while times were taken "
            f"({', '.join(disturbed)}): latencies and speed-ups are not those of a quiet machine"
        ]

    def _cells(self) -> tuple[Sequence[str], list[list[str]]]:
        metrics = list(self.metric_names)
        header = ["method", "status", "latency ms", "images/s", "speed-up", *metrics]
        header += [*(["drop"] if metrics else []), "int8", "size MB", "peak MB"]
        rows = []
        for result, row in zip(self.results, self.rows(), strict=True):
            cells = [result.name, result.status.value, _text(row["latency_ms"], 1), _text(row["images_per_second"], 1)]
            cells += [_text(row["speedup"], 2), *(_text(row[name], 4) for name in metrics)]
            cells += [_with_margin(row["drop"], row["drop_margin"])] if metrics else []
            share = "-" if result.int8_share is None else f"{result.int8_share:.0%}"
            rows.append([*cells, share, _text(row["size_mb"], 1), _text(row["peak_memory_mb"], 0)])
        return header, rows


def _with_margin(drop: float | None, margin: float | None) -> str:
    return _text(drop, 4) if drop is None or margin is None else f"{drop:.4f} ±{margin:.4f}"


def _median_ms(result: MethodResult) -> float:
    return result.latency.median_ms if result.latency else float("inf")


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None or math.isnan(value) else round(value, digits)


def _text(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
