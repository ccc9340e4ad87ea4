"""The kinds of metric a user may give, and what is made of the data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small_models import CountingAccuracy

from yolox.errors import UsageError
from yolox.inference.convert.calibration import as_inputs, count_inputs, gather_inputs
from yolox.inference.search.scorer import Scorer

INPUTS = torch.eye(6)
TARGETS = torch.tensor([0, 1, 2, 3, 0, 0])
DATA = [(INPUTS[:4], TARGETS[:4]), (INPUTS[4:], TARGETS[4:])]


def identity(x: torch.Tensor) -> torch.Tensor:
    return x


def accuracy(pred: torch.Tensor, target: torch.Tensor) -> float:
    return float((pred.argmax(1) == target).float().mean())


def test_function_of_prediction_and_target_is_weighted_by_rows() -> None:
    assert Scorer(accuracy, DATA).score(identity) == {"accuracy": pytest.approx(4 / 6)}


def test_object_with_update_and_compute() -> None:
    metric = CountingAccuracy()
    assert Scorer(metric, DATA).score(identity) == {"CountingAccuracy": pytest.approx(4 / 6)}
    assert metric.total == 0  # a copy was used


def test_torchmetrics() -> None:
    torchmetrics = pytest.importorskip("torchmetrics")
    metric = torchmetrics.classification.MulticlassAccuracy(num_classes=6, average="micro")
    assert Scorer(metric, DATA).score(identity)["MulticlassAccuracy"] == pytest.approx(4 / 6)


def test_function_of_the_model() -> None:
    assert Scorer(lambda model: {"a": 1, "b": torch.tensor(2.0)}).score(identity) == {"a": 1.0, "b": 2.0}

    def with_data(model: Any, data: Any) -> int:
        return len(data)

    assert Scorer(with_data, DATA).score(identity) == {"with_data": 2.0}


def test_direction() -> None:
    assert Scorer(accuracy, direction="min").signed({"loss": 2.0}) == -2.0
    assert Scorer(accuracy).signed({"first": 2.0, "second": 5.0}) == 2.0


@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        (Scorer(lambda model: float("nan")), "finite"),
        (Scorer(lambda model: "good"), "a number or a mapping"),
        (Scorer(accuracy), "give validation_data"),
        (Scorer(accuracy, []), "empty"),
        (Scorer(accuracy, [INPUTS]), "without targets"),
    ],
)
def test_bad_metrics_and_data(scorer: Scorer, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        scorer.score(identity)


def test_inputs_of_batches() -> None:
    x, y = torch.zeros(2, 3), torch.zeros(2)
    assert len(as_inputs(x, 1)) == 1
    assert as_inputs((x, y), 1)[0] is x
    assert as_inputs({"x": x, "y": y}, 2) == (x, y)
    with pytest.raises(UsageError, match="expected 2 input"):
        as_inputs((x,), 2)
    with pytest.raises(UsageError, match="batch axis"):
        as_inputs(("text", y), 1)


def test_count_of_inputs_leaves_optional_ones_out() -> None:
    class Two(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
            return a + b * scale

    assert count_inputs(Two()) == 2


def test_gather_takes_the_first_batch_as_sample_and_stops_at_the_limit() -> None:
    seen: list[int] = []

    def loader() -> Any:
        for number in range(10):
            seen.append(number)
            yield torch.full((4, 2), float(number)), torch.zeros(4)

    inputs = gather_inputs(loader(), None, 1, 6)
    assert seen == [0, 1]
    assert inputs.batch_size == 4
    assert [len(batch[0]) for batch in inputs.calibration] == [4, 2]
    assert isinstance(inputs.sample[0], np.ndarray)
    only = gather_inputs(None, torch.ones(3, 2), 1, 6)
    assert only.calibration == ()
    with pytest.raises(UsageError, match="a loader"):
        gather_inputs(3, None, 1, 6)


def test_calibration_data_is_like_the_sample() -> None:
    """Every method is made for the sample's sizes; data of others is refused before any method runs."""
    with pytest.raises(UsageError, match=r"input 0 of shape \(2, 3, 32, 40\).*like the sample's, \(3, 32, 32\)"):
        gather_inputs([torch.zeros(2, 3, 32, 40)], torch.zeros(2, 3, 32, 32), 1, 6)
    with pytest.raises(UsageError, match=r"input 1 of shape \(2, 8\) and type int64"):
        gather_inputs([(torch.zeros(2, 3), torch.zeros(2, 8).long())], (torch.zeros(2, 3), torch.zeros(2, 8)), 2, 6)
    with pytest.raises(UsageError, match=r"shapes \(2, 3\), \(1, 3\) arrived, expected as many rows in each"):
        gather_inputs([(torch.zeros(2, 3), torch.zeros(1, 3))], None, 2, 6)
    inputs = gather_inputs([(torch.zeros(4, 3), torch.ones(4, 2, 2), torch.zeros(4))] * 2, None, 2, 6)
    assert [[array.shape for array in batch] for batch in inputs.calibration] == [
        [(4, 3), (4, 2, 2)],
        [(2, 3), (2, 2, 2)],
    ]


def test_averaged_metrics_tell_themselves_without_each_batch() -> None:
    def error(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (prediction - target).abs().mean()

    data = [(torch.zeros(2, 1), torch.ones(2, 1)), (torch.zeros(1, 1), torch.full((1, 1), 4.0))]
    values, blocks = Scorer(error, data).score_and_blocks(lambda x: x)
    assert values == {"error": pytest.approx(2.0)}
    assert blocks == pytest.approx((4.0, 1.0))
    assert Scorer(lambda model: 3.0).score_and_blocks(abs) == ({"<lambda>": 3.0}, ())
