"""The process of one engine, in the environment that has it: it converts, computes outputs, or runs one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engines.inputs import PROGRAM_BATCHES, Inputs, as_pair
from benchmarks.side_process import CommandLine
from yolox.cpu.allocator import keep_freed_memory
from yolox.cpu.other_load import OtherLoad
from yolox.inference.backends.base import Runner, Settings
from yolox.inference.search.latency import MeasurePlan, measure
from yolox.inference.search.tuning import tune
from yolox.processes.inside import peak_memory_mb

ATTEMPTS, QUIET_CORES = 3, 0.25
"""How often a round is tried until other processes take less than so much of a core."""


def serve(settings: Mapping[str, Any], line: CommandLine) -> None:
    """Answer ``prepare``, ``outputs``, ``tune`` and ``time``.

    Args:
        settings: ``adapter``, the module of the engine; ``inputs`` and ``folder``, where its files lie; ``options`` for
            the engine; ``stock``, whether the allocator is left as it is.
        line: The line to the parent.
    """
    if not settings["stock"]:
        keep_freed_memory()
    engine = import_module(f"benchmarks.engines.{settings['adapter']}")
    inputs, folder, options = Inputs(Path(settings["inputs"])), Path(settings["folder"]), settings["options"]
    for command in line.commands():
        if command["do"] == "prepare":
            line.reply(**engine.prepare(inputs, folder, options))
        else:
            runner = engine.load(inputs, folder, options)
            line.reply(**_COMMANDS[command["do"]](runner, inputs, command))


def _outputs(runner: Runner, inputs: Inputs, command: Mapping[str, Any]) -> dict[str, Any]:
    """Write boxes and scores of the first images to a file."""
    batch, images = PROGRAM_BATCHES[-1], inputs.images[: command["count"]]
    found = [
        as_pair(runner(images[start : start + batch].astype(np.float32))) for start in range(0, len(images), batch)
    ]
    boxes, scores = (np.concatenate(parts) for parts in zip(*found, strict=True))
    np.savez(command["path"], boxes=boxes, scores=scores)
    return {}


def _tune(runner: Runner, inputs: Inputs, command: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fastest of the engine's settings for this batch."""
    batch, threads = command["batch"], command["threads"]
    candidates = runner.candidates(batch, threads)
    if len(candidates) == 1:  # which need not be what the engine was saved with, for another batch
        return {"settings": candidates[0].as_dict()}
    runner, _ = tune(runner, (inputs.batch(batch),), threads, command["budget"], print)
    return {"settings": runner.settings.as_dict()}


def _time(runner: Runner, inputs: Inputs, command: Mapping[str, Any]) -> dict[str, Any]:
    """Return the milliseconds of the runs of one round, the peak memory of this process and what others used meanwhile.

    A round beside others is repeated: some engines are hundreds of times slower then, and none says anything.
    """
    settings = Settings(**command["settings"])
    runner = runner if settings == runner.settings else runner.configured(settings)
    images = inputs.batch(command["batch"])
    plan = MeasurePlan(rounds=1, samples=command["samples"], round_seconds=command["round_seconds"])
    for _ in range(ATTEMPTS):
        others = OtherLoad()
        samples = list(measure(partial(runner, images), plan))
        other_cores = others.cores()
        if other_cores is None or other_cores < QUIET_CORES:
            break
    return {"samples_ms": samples, "peak_memory_mb": peak_memory_mb(), "other_cores": other_cores}


_COMMANDS: dict[str, Callable[[Runner, Inputs, Mapping[str, Any]], dict[str, Any]]] = {
    "outputs": _outputs,
    "tune": _tune,
    "time": _time,
}
