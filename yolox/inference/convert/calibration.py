"""Inputs out of whatever the user gives as data: the sample batch and the calibration set, as numpy arrays."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from yolox.errors import UsageError
from yolox.inference.backends.base import as_numpy

NumpyArrays = tuple[np.ndarray[Any, Any], ...]


@dataclass(frozen=True)
class ModelInputs:
    """What the methods are measured and calibrated on.

    Args:
        sample: Inputs of the batch whose latency is measured.
        calibration: Inputs of batches of real data; empty when only a sample was given.
    """

    sample: NumpyArrays
    calibration: tuple[NumpyArrays, ...]

    @property
    def batch_size(self) -> int:
        """Rows of the sample."""
        return len(self.sample[0])


def count_inputs(model: Any) -> int:
    """Return how many positional inputs ``model.forward`` needs, at least one."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(model.forward).parameters.values()
    return max(1, sum(p.kind in kinds and p.default is inspect.Parameter.empty for p in parameters))


def as_inputs(batch: Any, num_inputs: int) -> tuple[Any, ...]:
    """Return the model's inputs in one element of a loader: an array, ``(input ..., label ...)`` or a mapping.

    Raises:
        UsageError: When it holds no array where an input should be, or inputs of different batch sizes.
    """
    if isinstance(batch, Mapping):
        batch = tuple(batch.values())
    items = (batch,) if hasattr(batch, "shape") else batch
    if not isinstance(items, Sequence) or len(items) < num_inputs:
        raise UsageError(f"a batch of type {type(batch).__name__} arrived, expected {num_inputs} input(s) and labels.")
    inputs = tuple(items[:num_inputs])
    for item in inputs:
        if not hasattr(item, "shape") or len(item.shape) == 0:
            raise UsageError(f"an input of type {type(item).__name__} arrived, expected a tensor with a batch axis.")
    if len({len(item) for item in inputs}) > 1:
        shapes = ", ".join(str(tuple(item.shape)) for item in inputs)
        raise UsageError(f"inputs of shapes {shapes} arrived, expected as many rows in each: axis 0 is the batch.")
    return inputs


def gather_inputs(
    training_data: Any, input_sample: Any, num_inputs: int, num_calibration: int, batch_size: int | None = None
) -> ModelInputs:
    """Collect the sample batch and at most ``num_calibration`` rows of calibration data.

    Args:
        training_data: A loader or another iterable of batches, or one batch.
        input_sample: The sample (a tensor or a tuple of them); ``None`` takes the first batch of the data.
        num_inputs: Inputs that the model takes.
        num_calibration: Rows to calibrate on; the first batch is kept whole, for models of one batch size.
        batch_size: Cut the sample to so many rows.

    Raises:
        UsageError: When there is neither data nor sample, the data is unlike the sample, or the sample smaller than
            ``batch_size``.
    """
    calibration: list[NumpyArrays] = []
    rows = 0
    for batch in batches_of(training_data):
        inputs = tuple(as_numpy(item) for item in as_inputs(batch, num_inputs))
        calibration.append(tuple(array[: num_calibration - rows] for array in inputs) if rows else inputs)
        rows += len(inputs[0])
        if rows >= num_calibration:
            break
    if input_sample is not None:
        sample = tuple(as_numpy(item) for item in as_inputs(input_sample, num_inputs))
    elif calibration:
        sample = calibration[0]
    else:
        raise UsageError("no training_data and no input_sample arrived; give a loader, a batch or a sample input.")
    if batch_size is not None:
        if len(sample[0]) < batch_size:
            raise UsageError(f"the sample has {len(sample[0])} rows, a batch of {batch_size} is asked for. Give more.")
        sample = tuple(array[:batch_size] for array in sample)
    _check_alike(sample, calibration)
    return ModelInputs(sample, tuple(calibration))


def _check_alike(sample: NumpyArrays, calibration: Sequence[NumpyArrays]) -> None:
    """Refuse calibration data that the prepared model could not take: its sizes are those of the sample.

    Raises:
        UsageError: With both shapes.
    """
    for arrays in calibration:
        for index, (ours, theirs) in enumerate(zip(arrays, sample, strict=True)):
            if ours.shape[1:] != theirs.shape[1:] or ours.dtype != theirs.dtype:
                rows = f"{theirs.shape[1:]} of {theirs.dtype}"
                raise UsageError(
                    f"training_data has an input {index} of shape {ours.shape} and type {ours.dtype}; expected rows "
                    f"like the sample's, {rows}. Resize the data, or give another input_sample."
                )


def batches_of(data: Any) -> Iterator[Any]:
    """Return the batches in ``data``: a loader, another iterable of batches, one batch, or ``None`` for none.

    Raises:
        UsageError: When it is none of these.
    """
    if data is None:
        return iter(())
    one = hasattr(data, "shape") or isinstance(data, Mapping)
    if one or (isinstance(data, tuple) and data and hasattr(data[0], "shape")):
        return iter((data,))
    if not isinstance(data, Iterable):
        raise UsageError(f"data of type {type(data).__name__} arrived; expected a loader, an iterable or one batch.")
    return iter(data)
