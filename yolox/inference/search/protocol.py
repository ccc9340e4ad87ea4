"""What passes between the search and the process of a method: the job, the files that all methods share, the messages.

The files are written by the same user on the same machine moments before; they are removed with the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from yolox.inference.backends.base import Settings
from yolox.inference.search.latency import MeasurePlan
from yolox.processes.pickling import dumps

NumpyArrays = tuple[np.ndarray[Any, Any], ...]


@dataclass(frozen=True)
class Limits:
    """How long a run may take and how much it may use.

    Args:
        method_seconds: Time limit of one method until its first latency.
        tune_seconds: Time for the search of its settings.
        time_budget: Seconds for the whole run; methods whose turn comes later are not started. ``None``: no limit.
        rounds: Interleaved rounds of measurement.
        round_seconds: Time of one method in one round.
        calibration_size: Rows of the training data that int8 methods calibrate on.
        max_drop: Accuracy that an int8 method may lose, absolute; layers go to a higher precision until it holds.
    """

    method_seconds: float = 300.0
    tune_seconds: float = 8.0
    time_budget: float | None = None
    rounds: int = 5
    round_seconds: float = 1.2
    calibration_size: int = 128
    max_drop: float = 0.01


@dataclass(frozen=True)
class Job:
    """All that the process of one method needs to know; JSON values only.

    Args:
        method: Name of the method.
        payload: Folder that ``Payload`` describes.
        artifact: Folder to write the artifact to.
        work_dir: Folder for temporary files.
        threads: Cores to use.
        prepare_threads: Threads of torch while others convert beside it.
        prepare_seconds: Time for the conversion.
        limits: Those of the run.
        baseline_ms: Latency of the original, once it is known.
        original_scores: Accuracy of the original, once it is known.
        facts: What the process of ``original`` found out: ``structure``, ``dynamic_batch``.
        metadata: The user's values for the artifact.
    """

    method: str
    payload: str
    artifact: str
    work_dir: str
    threads: int
    prepare_threads: int = 1
    prepare_seconds: float = 300.0
    limits: Limits = field(default_factory=Limits)
    baseline_ms: float | None = None
    original_scores: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_original(self) -> bool:
        """Whether this is the model as it is: default allocator, no tuning, and it writes the reference outputs."""
        return self.method == "original"


@dataclass(frozen=True)
class Payload:
    """The files that all methods share.

    Args:
        folder: Where ``model.pkl``, ``scorer.pkl`` (only with a metric), ``sample_I.npy``, ``calibration_K_I.npy`` and,
            once the original has run, ``reference_I.npy`` lie.
    """

    folder: Path

    def arrays(self, stem: str) -> NumpyArrays:
        """Return ``stem_0.npy``, ``stem_1.npy`` ... mapped into memory, so that all processes share the pages."""
        found: list[np.ndarray[Any, Any]] = []
        while (path := self.folder / f"{stem}_{len(found)}.npy").exists():
            found.append(np.load(path, mmap_mode="c", allow_pickle=False))
        return tuple(found)

    def write_arrays(self, stem: str, arrays: Sequence[Any]) -> None:
        """Write arrays under the names that ``arrays`` reads."""
        for index, array in enumerate(arrays):
            np.save(self.folder / f"{stem}_{index}.npy", array, allow_pickle=False)

    def calibration(self) -> tuple[NumpyArrays, ...]:
        """Return the calibration batches."""
        items: list[NumpyArrays] = []
        while batch := self.arrays(f"calibration_{len(items)}"):
            items.append(batch)
        return tuple(items)

    def load(self, name: str) -> Any:
        """Unpickle ``name.pkl``, or return ``None`` when it does not exist."""
        import cloudpickle

        path = self.folder / f"{name}.pkl"
        return cloudpickle.loads(path.read_bytes()) if path.exists() else None

    def write(self, name: str, value: Any) -> None:
        """Pickle ``value`` under the name that ``load`` reads, code of ``__main__`` included.

        Raises:
            UsageError: When it cannot be pickled.
        """
        (self.folder / f"{name}.pkl").write_bytes(dumps(value, f"the {name}"))


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


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the process of a method finds out besides its latency.

    Args:
        metrics: What the metric says of its outputs, by name.
        leave_one_out: The decisive metric without each block of the validation data; empty where it is not told.
        size_mb: Size of its artifact on disk; None when it could not be saved.
        peak_memory_mb: Largest resident set of its process (libraries, model, conversion, tuning and measurement).
        int8_share: Share of multiply-accumulates that run in int8.
        max_difference: Largest absolute difference between its outputs and the original's on the sample batch.
        settings: The settings that the tuner chose.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    leave_one_out: tuple[float, ...] = ()
    size_mb: float | None = None
    peak_memory_mb: float | None = None
    int8_share: float | None = None
    max_difference: float | None = None
    settings: Settings | None = None


@dataclass(frozen=True, kw_only=True)
class Ready(Measured):
    """What is known of a method before its latency is measured.

    Args:
        facts: What is known of the original, and of it alone: ``structure`` and ``dynamic_batch``.
        slow_ms: Times of a method that is too slow to go on with; empty for others.
        note: What to know about the row.
    """

    facts: Mapping[str, Any] = field(default_factory=dict)
    slow_ms: tuple[float, ...] = ()
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
