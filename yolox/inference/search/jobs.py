"""What the parent hands to the process of a method: the job in JSON values and the files that all methods share.

The same user writes them on the same machine moments before; they are no artifacts and are removed with the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

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
