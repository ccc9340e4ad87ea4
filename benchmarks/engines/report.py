"""The table of one network and batch."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.engines.pieces_file import Pieces
from benchmarks.engines.plan import Plan
from benchmarks.engines.table import Engine
from benchmarks.protocol import Part, Row

ABOUT = "YOLOX in the inference engines that people use, each in a process of its own, by turns."
OURS = "native_int8"
COLUMNS = {
    "engine": "{engine}",
    "p50 ms": "{p50:.2f}",
    "p99 ms": "{p99:.2f}",
    "images/s": "{rate:.1f}",
    f"times {OURS}": "{times:.2f}",
    "peak MB": "{peak_memory_mb:.0f}",
    "size MB": "{size_mb:.1f}",
    "AP": "{AP:.4f}",
    "signal to noise, dB": "{decibels:.0f}",
    "int8": "{int8_share:.0%}",
    "runs": "{count}",
    "cores of others": "{other_cores:.1f}",
    "why not": "{reason}",
}
NOTE = (
    "p99 of fewer than 100 runs is close to their slowest. 'original' is eager fp32, contiguous, with the default "
    "allocator; every other row has ours. Rows of PyTorch, OpenVINO and ONNX Runtime run as our optimizer prepares and "
    "tunes them; ncnn, LiteRT and ExecuTorch get the network with its first layer merged into one convolution, and the "
    "fastest of one or two streams and pieces of one or eight images. A batch of 64 runs with the settings that were "
    "the fastest for 8, in pieces of 8 at most ('original' as a whole). int8 rows are as the quantizer leaves them; "
    "'mixed' ones keep in float the layers that cost accuracy. AP at confidence 0.01; signal to noise is that of the "
    "outputs against the float network, the lower one of boxes and scores."
)


def part_of(plan: Plan, done: Pieces, model: str, batch: int) -> Part:
    """Return the table of what is finished."""
    rows = [_row(plan, done, model, batch, engine) for engine in plan.engines(model)]
    ours = next((row["p50"] for row in rows if row["engine"] == OURS and "p50" in row), None)
    for row in rows:
        if ours is not None and "p50" in row:
            row["times"] = row["p50"] / ours
    settings = {"threads": plan.threads, "rounds": plan.rounds(model, batch), "model": model, "batch": batch}
    return Part(rows, COLUMNS, settings, [str(done.get(f"{model}/inputs").get("what", "")), NOTE])


def _row(plan: Plan, done: Pieces, model: str, batch: int, engine: Engine) -> Row:
    key = f"{model}/{engine.name}"
    pieces = [f"{key}/prepared", f"{key}/accuracy", f"{key}/b{batch}/settings"]
    rounds = [f"{key}/b{batch}/round{number}" for number in range(plan.rounds(model, batch))]
    reasons = [engine.obstacle, *(done.failure(piece) for piece in (*pieces, *rounds))]
    row: dict[str, Any] = {"engine": engine.name, "reason": next(filter(None, reasons), "")}
    for piece in pieces:
        row.update({name: value for name, value in done.get(piece).items() if name not in {"output", "failure"}})
    samples = [value for piece in rounds for value in done.get(piece).get("samples_ms", ())]
    if samples and not row["reason"]:
        p50, p99 = (float(value) for value in np.percentile(samples, [50, 99]))
        medians = [float(np.median(done.get(piece)["samples_ms"])) for piece in rounds if done.get(piece)]
        row.update(p50=p50, p99=p99, rate=1e3 * batch / p50, count=len(samples), round_medians_ms=medians)
        row["other_cores"] = max(done.get(piece).get("other_cores") or 0.0 for piece in rounds)
        row["peak_memory_mb"] = max(done.get(piece).get("peak_memory_mb", 0.0) for piece in rounds)
    row.pop("took_s", None)
    return row
