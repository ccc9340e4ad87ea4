"""The messages between the search and the process of a method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from yolox.inference.backends.base import Settings
from yolox.inference.search.latency import MeasurePlan


class Status(str, Enum):
    """How a method ended."""

    SUCCESSFUL = "successful"
    LACK_DEPENDENCY = "lack dependency"
    FAIL_TO_CONVERT = "fail to convert"
    EARLY_STOPPED = "early stopped"
    FAIL_TO_FORWARD = "fail to forward"


class Stage(str, Enum):
    """What the process of a method does; the values read as "stopped while ..."."""

    STARTING = "starting"
    CONVERTING = "converting"
    RUNNING = "running the sample"
    TUNING = "tuning"
    SCORING = "measuring accuracy"
    SAVING = "saving"
    CHECKING = "checking the saved model"
    MEASURING = "measuring latency"

    @property
    def failure(self) -> Status:
        """The status of a method that fails here."""
        early = self in (Stage.STARTING, Stage.CONVERTING)
        return Status.FAIL_TO_CONVERT if early else Status.FAIL_TO_FORWARD


@dataclass(frozen=True)
class Progress:
    """What the process does now: the stage, and a few words for the user."""

    stage: Stage
    text: str


@dataclass(frozen=True)
class Prepared:
    """The model has been converted; the process waits for `Go`."""


@dataclass(frozen=True)
class Go:
    """The parent lets a prepared method go on: nothing else computes now."""


@dataclass(frozen=True)
class Ready:
    """What is known of a method before its latency is measured.

    Args:
        peak_memory_mb: Largest resident set of the process so far.
        settings: The settings that the tuner chose.
        int8_share: Share of multiply-accumulates that run in int8.
        facts: What is known of the original, and of it alone: ``structure`` and ``dynamic_batch``.
        max_difference: Largest absolute difference from the original's outputs.
        slow_ms: Times of a method that is too slow to go on with; empty for others.
        scores: What the metric said, by name.
        leave_one_out: The decisive score without each block of the validation data.
        size_mb: Size of the artifact; None when it could not be saved.
        note: What to know about the row.
    """

    peak_memory_mb: float | None
    settings: Settings
    int8_share: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    max_difference: float | None = None
    slow_ms: tuple[float, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    leave_one_out: tuple[float, ...] = ()
    size_mb: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Measure:
    """The parent asks for one round."""

    plan: MeasurePlan


@dataclass(frozen=True)
class Samples:
    """The times of a round in milliseconds, the largest resident set so far, and the cores that others used."""

    samples_ms: tuple[float, ...]
    peak_memory_mb: float | None
    other_cores: float | None = None


@dataclass(frozen=True)
class Failed:
    """Why the method ends here, and the status that this means."""

    status: Status
    reason: str
    peak_memory_mb: float | None
