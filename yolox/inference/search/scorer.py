"""Accuracy of any runnable model on the user's validation data, with the user's metric."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from yolox.errors import UsageError
from yolox.inference.convert.calibration import as_inputs, batches_of


@dataclass(frozen=True)
class Score:
    """What a metric may return in place of numbers, to say how sure they are.

    Args:
        values: The numbers by name, the decisive one first.
        leave_one_out: Gives the decisive number once for each block of the data, computed without that block. The
            blocks are the same for every model, so that a difference between two models can be resampled pairwise.
    """

    values: Mapping[str, float]
    leave_one_out: Callable[[], Sequence[float]]


@dataclass(frozen=True)
class Scorer:
    """Measures a model. It travels to the process of each method.

    Args:
        metric: One of: an object with ``update(prediction, target)`` and ``compute()`` (torchmetrics); a function whose
            first two parameters are named like "pred" and "target", averaged over the batches by their sizes;
            ``metric(model, data)``; ``metric(model)``. It returns a number, a mapping of numbers, the decisive one
            first, or a `Score`.
        data: Validation data: batches ``(input ..., target)``; not needed by ``metric(model)``.
        direction: ``max`` when larger is better, else ``min``.
        num_inputs: How many positional inputs the model takes.
    """

    metric: Any
    data: Any = None
    direction: str = "max"
    num_inputs: int = 1

    def score(self, model: Callable[..., Any]) -> dict[str, float]:
        """Return the metric's values by name.

        Raises:
            UsageError: When the metric returns something else than finite numbers, or needs data that are missing.
        """
        value = self._value(model)
        return self._named(value.values if isinstance(value, Score) else value)

    def score_and_blocks(self, model: Callable[..., Any]) -> tuple[dict[str, float], tuple[float, ...]]:
        """Return the metric's values, and the decisive one without each block of the data where the metric tells it.

        Raises:
            UsageError: As ``score``.
        """
        value = self._value(model)
        if not isinstance(value, Score):
            return self._named(value), ()
        return self._named(value.values), tuple(float(number) for number in value.leave_one_out())

    def _value(self, model: Callable[..., Any]) -> Any:
        if hasattr(self.metric, "update") and hasattr(self.metric, "compute"):
            return self._updated(model)
        if _compares(self.metric):
            return self._averaged(model)
        if self.data is not None and len(_parameters(self.metric)) >= 2:
            return self.metric(model, self.data)
        return self.metric(model)

    def signed(self, scores: Mapping[str, float]) -> float:
        """Return the decisive value, larger is better."""
        value = next(iter(scores.values()))
        return value if self.direction == "max" else -value

    def _updated(self, model: Callable[..., Any]) -> Any:
        metric = copy.deepcopy(self.metric)
        if hasattr(metric, "reset"):
            metric.reset()
        for inputs, target in self._batches():
            metric.update(model(*inputs), target)
        return metric.compute()

    def _averaged(self, model: Callable[..., Any]) -> Score:
        values: list[float] = []
        sizes: list[int] = []
        for inputs, target in self._batches():
            values.append(float(self.metric(model(*inputs), target)))
            sizes.append(len(inputs[0]))
        if not sizes:
            raise UsageError("the validation data are empty; give at least one batch.")
        name = getattr(self.metric, "__name__", type(self.metric).__name__)
        total, count = sum(v * n for v, n in zip(values, sizes, strict=True)), sum(sizes)

        def without_each() -> list[float]:
            pairs = zip(values, sizes, strict=True)
            return [(total - v * n) / (count - n) for v, n in pairs] if len(sizes) > 1 else []

        return Score({name: total / count}, without_each)

    def _batches(self) -> Iterable[tuple[tuple[Any, ...], Any]]:
        if self.data is None:
            raise UsageError("this metric compares predictions with targets: give validation_data as (input, target).")
        for batch in batches_of(self.data):
            inputs = as_inputs(batch, self.num_inputs)
            if not isinstance(batch, Sequence) or len(batch) <= self.num_inputs:
                raise UsageError("validation data without targets; expected batches of (input, target).")
            rest = batch[self.num_inputs :]
            yield inputs, rest[0] if len(rest) == 1 else rest

    def _named(self, value: Any) -> dict[str, float]:
        default = getattr(self.metric, "__name__", type(self.metric).__name__)
        items = value if isinstance(value, Mapping) else {default: value}
        try:
            scores = {str(name): float(number) for name, number in items.items()}
        except (TypeError, ValueError, RuntimeError) as error:
            raise UsageError(f"the metric returned {value!r}; expected a number or a mapping of numbers.") from error
        if not scores or any(not math.isfinite(number) for number in scores.values()):
            raise UsageError(f"the metric returned {scores or value!r}; expected finite numbers.")
        return scores


def _parameters(function: Any) -> list[str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [parameter.name for parameter in parameters if parameter.kind in kinds]


def _compares(function: Any) -> bool:
    names = _parameters(function)[:2]
    return len(names) == 2 and "pred" in names[0].lower() and "target" in names[1].lower()
