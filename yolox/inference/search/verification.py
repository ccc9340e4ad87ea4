"""Does a prepared model answer as the original does?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from yolox.errors import UsageError
from yolox.inference.artifacts.model import AcceleratedModel
from yolox.inference.artifacts.structure import describe
from yolox.inference.backends.base import Arrays

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
