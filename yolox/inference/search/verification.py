"""Does a prepared model answer as the original does, and a saved one, in a fresh process, as it did when measured?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from yolox.errors import UsageError, YoloxError
from yolox.inference.artifacts.model import AcceleratedModel
from yolox.inference.artifacts.structure import describe
from yolox.inference.backends.base import Arrays
from yolox.inference.runner_process import Batch, Failed, await_loaded, start_runner
from yolox.inference.search.protocol import Payload
from yolox.processes.start import ProcessFailure

FP32_TOLERANCE = 0.05
"""An fp32 method that differs by more than this share of the largest value computes something else."""


def learn_facts(model: AcceleratedModel, nested: Any, sample: Sequence[Any]) -> tuple[AcceleratedModel, Arrays]:
    """Return the original with what only running it can tell in its manifest, and its outputs on the sample.

    Args:
        model: The original.
        nested: What its module returned, not flattened.
        sample: The sample inputs.
    """
    outputs = model.run(*sample)
    if not outputs:
        raise UsageError("the model returns no tensor.")
    try:
        single = model.run(*(array[:1] for array in sample))
    except (RuntimeError, ValueError, IndexError):
        single = ()
    free = len(single) == len(outputs) and all(
        output.ndim > 0 and len(output) == len(sample[0]) and one.shape == (1, *output.shape[1:])
        for output, one in zip(outputs, single, strict=True)
    )
    manifest = replace(model.manifest, structure=describe(nested), dynamic_batch=free, num_outputs=len(outputs))
    return replace(model, manifest=manifest), outputs


def largest_difference(precision: str, outputs: Sequence[Any], reference: Sequence[Any]) -> float:
    """Return the largest absolute difference to the original's outputs.

    Raises:
        UsageError: When the outputs cannot be right: other shapes, NaN, or an fp32 method far off.
    """
    shapes = [tuple(output.shape) for output in outputs]
    if shapes != [tuple(output.shape) for output in reference]:
        raise UsageError(f"wrong output: shapes {shapes} instead of {[tuple(output.shape) for output in reference]}.")
    largest = 0.0
    for output, expected in zip(outputs, reference, strict=True):
        if not output.size:
            continue
        if not np.isfinite(output).all() and np.isfinite(expected).all():
            raise UsageError("wrong output: it holds NaN or infinite numbers.")
        difference = float(np.abs(output.astype(np.float64) - expected).max())
        scale = float(np.abs(expected).max())
        if precision == "fp32" and difference > FP32_TOLERANCE * max(scale, 1e-6):
            raise UsageError(f"wrong output: an fp32 method differs by {difference:.4g} (largest value {scale:.4g}).")
        largest = max(largest, difference)
    return largest


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
