"""Which pieces a run has, in order: engines are prepared first, then measured by turns."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.engines.inputs import PROGRAM_BATCHES, Inputs
from benchmarks.engines.pieces_file import Piece
from benchmarks.engines.table import ENGINES, MIXED, ORIGINAL, Engine
from benchmarks.side_process import Side
from yolox.inference.artifacts.model import folder_size_mb
from yolox.inference.search.latency import interleave

BATCHES = (1, 8, 64)
ROUNDS = {("nano", 1): 3, ("nano", 8): 3, ("nano", 64): 3, ("s", 64): 1}
"""Rounds of a part; others have two."""
ROUND_SECONDS, SAMPLES = 1.0, 250
TUNE_SECONDS = 3.0
LARGEST_TUNED = 8
"""A larger batch runs with the settings of this one, cut into pieces of its size where it ran as a whole."""
PIECE_SECONDS = 3600.0
FEW = (
    *(ORIGINAL, "bf16", "inductor_bf16", "openvino_fp32", "openvino_bf16", "openvino_int8", "onnxruntime_fp32"),
    *("ncnn_fp32", "ncnn_int8", "litert_fp32", "litert_int8", "executorch_fp32", "executorch_int8", "native_int8"),
)
"""Rows of the larger networks, whose published weights are not at hand: how fast they run needs no more."""
QUICK_ENGINES = (ORIGINAL, "native_int8", "ncnn_int8")


@dataclass(frozen=True)
class Plan:
    """Settings of a run.

    Args:
        work: Folder of prepared engines.
        threads: Cores to use.
        only: Names of the rows to work on; all where empty.
        quick: Whether to use tiny settings.
    """

    work: Path
    threads: int
    only: Sequence[str] = ()
    quick: bool = False

    def engines(self, model: str) -> list[Engine]:
        """Return the rows of a network."""
        names = QUICK_ENGINES if self.quick else tuple(engine.name for engine in ENGINES) if model == "nano" else FEW
        has_labels = self.inputs(model).labels.exists()
        chosen = [engine for engine in ENGINES if engine.name in names and (has_labels or not engine.keeps_accuracy)]
        return [engine for engine in chosen if not self.only or engine.name in self.only]

    def inputs(self, model: str) -> Inputs:
        """Return the shared files of a network."""
        return Inputs(self.work / model)

    def folder(self, model: str, engine: Engine) -> Path:
        """Return where a prepared engine lies."""
        return self.work / model / engine.name.replace(", ", "-")

    def rounds(self, model: str, batch: int) -> int:
        """Return how often each engine has its turn."""
        return 1 if self.quick else ROUNDS.get((model, batch), 2)


def pieces_of(plan: Plan, model: str, batch: int, stage: str) -> Iterator[Piece]:
    """Yield the pieces of one stage, ``prepare`` or ``measure``, of one table."""
    if stage == "prepare":
        yield Piece(f"{model}/inputs", partial(_write_inputs, plan, model))
    engines = [engine for engine in plan.engines(model) if not engine.obstacle]
    for engine in engines if stage == "prepare" else ():
        key = f"{model}/{engine.name}"
        plain = f"{model}/{engine.name.removesuffix(MIXED)}/prepared"
        before = (f"{model}/{ORIGINAL}/accuracy", plain) if engine.keeps_accuracy else ()
        yield Piece(f"{key}/prepared", partial(_prepare, plan, model, engine), before)
        yield Piece(f"{key}/accuracy", partial(_accuracy, plan, model, engine), (f"{key}/prepared",))
    if stage == "prepare":
        return
    for engine in engines:
        key = f"{model}/{engine.name}"
        needs = (f"{key}/prepared", f"{key}/accuracy")
        tuned = min(batch, LARGEST_TUNED)
        yield Piece(f"{key}/b{tuned}/settings", partial(_tune, plan, model, engine, tuned), needs)
        if batch > tuned:
            found = (f"{key}/b{tuned}/settings",)
            yield Piece(f"{key}/b{batch}/settings", partial(_settings_of_more, engine), found)
    for number, engine in interleave(engines, plan.rounds(model, batch)):
        key = f"{model}/{engine.name}/b{batch}"
        yield Piece(f"{key}/round{number}", partial(_time, plan, model, engine, batch), (f"{key}/settings",))


def _write_inputs(plan: Plan, model: str) -> dict[str, Any]:
    from benchmarks.engines.sources import write_inputs

    inputs = plan.inputs(model)
    return {"what": write_inputs(inputs, model)}


def _ask(plan: Plan, model: str, engine: Engine, more: Mapping[str, Any], **command: Any) -> dict[str, Any]:
    """Start the engine's process, ask it one thing, and end it."""
    settings = {
        "adapter": engine.adapter,
        "inputs": str(plan.inputs(model).folder.resolve()),
        "folder": str(plan.folder(model, engine).resolve()),
        "options": {**engine.options, "model": model, "threads": plan.threads, **more},
        "stock": engine.is_stock,
    }
    side = Side(
        engine.name,
        "benchmarks.engines.side:serve",
        settings,
        our_allocator=not engine.is_stock,
        interpreter=str(engine.interpreter),
    )
    try:
        return side.ask(PIECE_SECONDS, **command)
    finally:
        side.close()


def _prepare(plan: Plan, model: str, engine: Engine, *before: Mapping[str, Any]) -> dict[str, Any]:
    """Convert; before a row that keeps the accuracy come the original's accuracy and the row that does not."""
    folder = plan.folder(model, engine)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    more = {"original_accuracy": before[0]["AP"]} if before else {}
    found = _ask(plan, model, engine, more, do="prepare")
    if before and found.get("int8_share") is not None and found["int8_share"] == before[1]["int8_share"]:
        raise RuntimeError(f"no layer needs float: the same as {engine.name.removesuffix(MIXED)}")
    return {**found, "size_mb": _size_mb(folder)}


def _size_mb(folder: Path) -> float:
    """Return the size of the model; of an engine with a model for each batch size, of that for one image."""
    larger = sum(path.stat().st_size for path in folder.glob(f"model-{PROGRAM_BATCHES[-1]}.*")) / 1e6
    return folder_size_mb(folder) - larger


def _accuracy(plan: Plan, model: str, engine: Engine, _: Mapping[str, Any]) -> dict[str, Any]:
    from benchmarks.engines.sources import average_precision, signal_to_noise

    inputs = plan.inputs(model)
    path = plan.folder(model, engine).resolve().with_suffix(".npz")
    count = len(inputs.images) if inputs.labels.exists() else PROGRAM_BATCHES[-1]
    _ask(plan, model, engine, {}, do="outputs", count=count, path=str(path))
    found = {"AP": average_precision(inputs, path), "decibels": signal_to_noise(inputs, path)}
    path.unlink()
    return found


def _tune(plan: Plan, model: str, engine: Engine, batch: int, *_: Mapping[str, Any]) -> dict[str, Any]:
    return _ask(plan, model, engine, {}, do="tune", batch=batch, threads=plan.threads, budget=TUNE_SECONDS)


def _settings_of_more(engine: Engine, tuned: Mapping[str, Any]) -> dict[str, Any]:
    size = None if engine.is_stock else tuned["settings"]["micro_batch"] or LARGEST_TUNED
    return {"settings": {**tuned["settings"], "micro_batch": size}}


def _time(plan: Plan, model: str, engine: Engine, batch: int, tuned: Mapping[str, Any]) -> dict[str, Any]:
    seconds, samples = (0.05, 3) if plan.quick else (ROUND_SECONDS, SAMPLES)
    command = {"settings": tuned["settings"], "batch": batch, "round_seconds": seconds, "samples": samples}
    return _ask(plan, model, engine, {}, do="time", **command)
