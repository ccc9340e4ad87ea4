"""A saved model runs: loaded again in a fresh process, it gives the outputs that were measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from yolox.errors import YoloxError
from yolox.inference.artifacts.model import AcceleratedModel
from yolox.inference.runner_process import Batch, Failed, await_loaded, start_runner
from yolox.inference.search.jobs import Payload
from yolox.processes.start import ProcessFailure

OTHER_BATCHES = (1, 8)
"""Rows of further batches that a model with a free batch axis must run."""

TOLERANCES = {"fp32": 1e-3, "bf16": 2e-2, "fp16": 2e-2, "int8": 2e-2}
"""Largest distance to the measured outputs, as a share of their size (Euclidean norms), for the measured batch."""

OTHER_BATCH_FACTOR = 10
"""So many times as far may the same rows be in another batch: int8 scales may be taken from each batch as a whole."""

SECONDS = 120.0


def check_saved(model: AcceleratedModel, folder: Path, payload: Payload, threads: int) -> None:
    """Compare a saved model, loaded in another process, with the one that was measured.

    Args:
        model: The model that was measured.
        folder: Its artifact.
        payload: Has the sample and, for artifacts that hold weights alone, the original module.
        threads: Cores to use.

    Raises:
        YoloxError: When it cannot be loaded, fails, or gives other outputs.
    """
    sample = payload.arrays("sample")
    measured = model.run(*sample)
    settings = replace(model.runner.settings, threads=min(threads, model.runner.settings.threads))
    process = start_runner(folder, settings, module=payload.folder / "model.pkl")
    try:
        await_loaded(process, folder)
        for rows, inputs in _batches(sample, model.manifest.dynamic_batch):
            process.send(Batch(rows, inputs))
            answer = process.receive(SECONDS)
            if isinstance(answer, Failed):
                raise YoloxError(f"the saved model does not run a batch of {rows}: {answer.reason}")
            same = rows == len(sample[0])
            tolerance = TOLERANCES[model.manifest.precision] * (1 if same else OTHER_BATCH_FACTOR)
            _compare(answer.arrays, _rows_of(measured, rows, same), tolerance, rows)
    except ProcessFailure as failure:
        raise YoloxError(f"the saved model does not run: its process {failure.reason}") from failure
    finally:
        process.stop()


def _batches(sample: Sequence[Any], dynamic: bool) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Yield the sample and, where the batch axis is free, some of its rows, repeated if need be."""
    count = len(sample[0])
    yield count, tuple(np.ascontiguousarray(array) for array in sample)
    for rows in OTHER_BATCHES if dynamic else ():
        if rows != count:
            yield rows, tuple(np.ascontiguousarray(array[np.arange(rows) % count]) for array in sample)


def _rows_of(measured: Sequence[Any], rows: int, same: bool) -> tuple[Any, ...]:
    return tuple(array if same else array[np.arange(rows) % len(array)] for array in measured)


def _compare(outputs: Sequence[Any], measured: Sequence[Any], tolerance: float, rows: int) -> None:
    if [array.shape for array in outputs] != [array.shape for array in measured]:
        shapes = [tuple(array.shape) for array in outputs]
        raise YoloxError(f"the saved model returns shapes {shapes} for a batch of {rows}, not the measured ones.")
    for number, (ours, theirs) in enumerate(zip(outputs, measured, strict=True)):
        reference = np.nan_to_num(np.asarray(theirs, np.float64))
        distance = float(np.linalg.norm(np.nan_to_num(np.asarray(ours, np.float64)) - reference))
        size = float(np.linalg.norm(reference))
        if not distance <= tolerance * max(size, 1e-6):
            share = distance / max(size, 1e-6)
            raise YoloxError(
                f"output {number} of the saved model is not the measured one: for a batch of {rows} it differs "
                f"by {share:.2%} of its size."
            )
