"""The process of one method: prepare, check, tune, measure the accuracy, save, then run rounds on request.

The messages are those of ``protocol``; everything printed goes to the log. The rest is in ``jobs``.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolox.cpu.allocator import keep_freed_memory, release_memory
from yolox.errors import MissingDependencyError, UsageError, YoloxError
from yolox.inference.search.protocol import (
    Failed,
    Go,
    Job,
    Measure,
    Payload,
    Prepared,
    Progress,
    Ready,
    Samples,
    Stage,
    Status,
)
from yolox.processes.inside import peak_memory_mb
from yolox.processes.messages import Channel, from_json

if TYPE_CHECKING:
    from yolox.inference.artifacts.model import AcceleratedModel
    from yolox.inference.search.scorer import Scorer

EARLY_STOP_FACTOR = 12.0  # a method this much slower than the original is given up


class StageError(Exception):
    """A failure with the status it means."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Parent:
    """The parent, as the process of a method sees it."""

    def __init__(self, connection: Connection) -> None:
        self._channel = Channel(connection, (Go, Measure))
        self._stage = Stage.STARTING

    def send(self, message: Any) -> None:
        """Send one message."""
        self._channel.send(message)

    def receive(self) -> Any:
        """Wait for a command; ``None`` when the parent has gone."""
        try:
            return self._channel.receive()
        except EOFError:
            return None

    def progress(self, text: str) -> None:
        """Tell what goes on, to the parent and to the log."""
        sys.stderr.write(f"[{time.strftime('%H:%M:%S')}] {text}\n")
        sys.stderr.flush()
        self.send(Progress(self._stage, text))

    def fail(self, failure: StageError) -> None:
        """Tell why this process ends."""
        traceback.print_exc()
        self.send(Failed(failure.status, str(failure), peak_memory_mb()))

    @contextmanager
    def stage(self, stage: Stage) -> Iterator[None]:
        """Tell that a stage begins; whatever is raised in it becomes a `StageError` with the stage's status."""
        self._stage = stage
        self.progress(stage.value)
        try:
            yield
        except MissingDependencyError as error:
            raise StageError(Status.LACK_DEPENDENCY, str(error)) from error
        except Exception as error:  # the user's model, the metric and five libraries may raise anything
            text = str(error) if isinstance(error, YoloxError) else f"{type(error).__name__}: {error}"
            reason = next((line for line in text.splitlines() if line.strip()), text).strip()
            raise StageError(stage.failure, reason) from error


def main(connection: Connection, job: Job) -> None:
    """Run the job, then answer each `Measure` until the parent goes away."""
    parent = Parent(connection)
    try:
        outcome = _run(job, Payload(Path(job.payload)), parent)
    except StageError as failure:
        parent.fail(failure)
        return
    if outcome is not None:
        model, result = outcome
        parent.send(Ready(peak_memory_mb=peak_memory_mb(), **result))
        _serve(job, model, parent)


def _prepared(job: Job, payload: Payload, parent: Parent) -> tuple[AcceleratedModel, dict[str, Any]]:
    """Convert and prove that the outputs can be right."""
    with parent.stage(Stage.CONVERTING):
        model = _prepare(job, payload, parent)
    with parent.stage(Stage.RUNNING):
        if job.is_original:
            model = _learn_facts(model, payload)
            facts = {"structure": model.manifest.structure, "dynamic_batch": model.manifest.dynamic_batch}
            return model, {"facts": facts}
        return model, {"max_difference": _difference(model, payload)}


def _run(job: Job, payload: Payload, parent: Parent) -> tuple[AcceleratedModel, dict[str, Any]] | None:
    """Prepare, wait for the word to go on, measure; ``None`` when the parent does not want it any more."""
    import torch

    torch.set_num_threads(job.threads if job.is_original else job.prepare_threads)
    model, result = _prepared(job, payload, parent)
    release_memory()
    parent.send(Prepared())
    if not isinstance(parent.receive(), Go):
        return None
    torch.set_num_threads(job.threads)
    if not job.is_original:
        with parent.stage(Stage.TUNING):
            sample = payload.arrays("sample")
            slow_ms = _too_slow(job, model, sample)
            model = model if slow_ms else _tune(job, model, sample, parent)
        if slow_ms:
            return model, {**result, "slow_ms": tuple(slow_ms), **_finish(job, model, parent)}
    with parent.stage(Stage.SCORING):
        scorer = payload.load("scorer")
        if scorer is not None:
            result["metrics"], result["leave_one_out"] = _score(scorer, model)
    return model, {**result, **_finish(job, model, parent)}


def _prepare(job: Job, payload: Payload, parent: Parent) -> AcceleratedModel:
    from yolox.inference.backends.base import PrepareContext
    from yolox.inference.convert.prepare import OutputFacts, accuracy_of, prepare_model
    from yolox.inference.methods import get_method

    if not job.is_original:
        sys.stderr.write(f"{keep_freed_memory()}\n")
    scorer: Scorer | None = payload.load("scorer") if job.original_scores else None
    outputs = OutputFacts(job.facts.get("structure"), len(payload.arrays("reference")))
    work_dir = Path(job.work_dir)
    work_dir.mkdir(parents=True, exist_ok=True)
    context = PrepareContext(
        sample=payload.arrays("sample"),
        calibration=payload.calibration(),
        threads=job.threads,
        work_dir=work_dir,
        dynamic_batch=bool(job.facts.get("dynamic_batch", True)),
        accuracy=accuracy_of(scorer, outputs.structure),
        original_accuracy=scorer.signed(job.original_scores) if scorer else None,
        max_drop=job.limits.max_drop,
        deadline_s=time.monotonic() + job.prepare_seconds,
        progress=parent.progress,
    )
    return prepare_model(payload.load("model").eval(), get_method(job.method), context, outputs, job.metadata)


def _score(scorer: Scorer, model: AcceleratedModel) -> tuple[dict[str, float], tuple[float, ...]]:
    try:
        return scorer.score_and_blocks(model)
    except Exception as error:
        reason = f"the metric failed: {type(error).__name__}: {error}"
        raise UsageError(reason) from error


def _learn_facts(model: AcceleratedModel, payload: Payload) -> AcceleratedModel:
    """Write the reference outputs for the other methods and complete the manifest."""
    import torch

    from yolox.inference.search.verification import learn_facts

    sample = payload.arrays("sample")
    with torch.inference_mode():
        nested = payload.load("model").eval()(*(torch.from_numpy(array) for array in sample))
    model, outputs = learn_facts(model, nested, sample)
    payload.write_arrays("reference", outputs)
    return model


def _difference(model: AcceleratedModel, payload: Payload) -> float:
    from yolox.inference.search.verification import largest_difference

    outputs = model.run(*payload.arrays("sample"))
    return largest_difference(model.manifest.precision, outputs, payload.arrays("reference"))


def _too_slow(job: Job, model: AcceleratedModel, sample: tuple[Any, ...]) -> list[float]:
    """Return the times of three runs if they show that the method is hopeless, else nothing.

    Time in which other processes had the cores says nothing about the method, so its CPU time must be as long.
    """
    if job.baseline_ms is None:
        return []
    samples: list[float] = []
    for _ in range(3):
        start, cpu_start = time.perf_counter(), time.process_time()
        model.run(*sample)
        samples.append((time.perf_counter() - start) * 1e3)
        used_ms = min(samples[-1], (time.process_time() - cpu_start) * 1e3)
        if used_ms <= EARLY_STOP_FACTOR * job.baseline_ms:
            return []
    return samples


def _tune(job: Job, model: AcceleratedModel, sample: tuple[Any, ...], parent: Parent) -> AcceleratedModel:
    from dataclasses import replace

    from yolox.inference.search.tuning import tune

    runner, _ = tune(model.runner, sample, job.threads, job.limits.tune_seconds, parent.progress)
    return replace(model, runner=runner)


def _finish(job: Job, model: AcceleratedModel, parent: Parent) -> dict[str, Any]:
    """Save the artifact, see that it runs, and tidy up; a model that cannot be saved is still a measured row."""
    from yolox.inference.artifacts.model import folder_size_mb, save_model
    from yolox.inference.search.verification import check_saved

    shutil.rmtree(job.work_dir, ignore_errors=True)
    result: dict[str, Any] = {"settings": model.runner.settings, "int8_share": model.runner.int8_share}
    folder = Path(job.artifact)
    try:
        with parent.stage(Stage.SAVING):
            save_model(model, folder)
        result["size_mb"] = folder_size_mb(folder)
    except StageError as failure:
        traceback.print_exc()
        shutil.rmtree(folder, ignore_errors=True)
        return {**result, "note": f"not saved: {failure}"}
    with parent.stage(Stage.CHECKING):
        check_saved(model, folder, Payload(Path(job.payload)), job.threads)
    return result


def _serve(job: Job, model: AcceleratedModel, parent: Parent) -> None:
    from yolox.cpu.other_load import OtherLoad
    from yolox.inference.search.latency import measure

    sample = Payload(Path(job.payload)).arrays("sample")
    release_memory()
    while isinstance(command := parent.receive(), Measure):
        try:
            others = OtherLoad()
            with parent.stage(Stage.MEASURING):
                samples = measure(partial(model.run, *sample), command.plan)
        except StageError as failure:
            parent.fail(failure)
            return
        parent.send(Samples(tuple(samples), peak_memory_mb(), others.cores()))
        release_memory()


def run(connection: Connection, job: dict[str, Any]) -> None:
    """Run the job that `MethodProcess` has written down."""
    main(connection, from_json(Job, job))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # some libraries hang or crash in their exit handlers; everything is on disk by now
