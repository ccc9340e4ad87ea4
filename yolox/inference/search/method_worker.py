"""The process of one method: prepare, check, tune, measure the accuracy, save, then run rounds on request.

Messages are JSON, one a line, through a socket that the parent opened; everything printed goes to the log. The rest is
in ``jobs``.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolox.cpu.allocator import keep_freed_memory
from yolox.errors import MissingDependencyError, UsageError, YoloxError
from yolox.inference.search.jobs import Job, Payload

if TYPE_CHECKING:
    from yolox.inference.artifacts.model import AcceleratedModel
    from yolox.inference.search.scorer import Scorer

__all__ = ["main", "run"]

PR_SET_PDEATHSIG = 1  # from <sys/prctl.h>: die with the parent
EARLY_STOP_FACTOR = 12.0  # a method this much slower than the original is given up


class StageError(Exception):
    """A failure with the status it means."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Channel:
    """The JSON lines between this process and its parent."""

    def __init__(self, descriptor: int) -> None:
        self._file = socket.socket(fileno=descriptor).makefile("rw", encoding="utf-8")

    def send(self, event: str, **values: Any) -> None:
        """Send one message."""
        self._file.write(json.dumps({"event": event, **values}) + "\n")
        self._file.flush()

    def receive(self) -> dict[str, Any] | None:
        """Wait for a command; ``None`` when the parent has gone."""
        line = self._file.readline()
        return json.loads(line) if line else None

    def progress(self, message: str) -> None:
        """Tell what goes on, to the parent and to the log."""
        sys.stderr.write(f"[{time.strftime('%H:%M:%S')}] {message}\n")
        sys.stderr.flush()
        self.send("progress", message=message)


def main(job_file: str, descriptor: int) -> None:
    """Run the job, then answer ``measure`` commands until the parent says ``exit`` or goes away."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    channel = Channel(descriptor)
    job = Job(**json.loads(Path(job_file).read_text(encoding="utf-8")))
    try:
        outcome = _run(job, Payload(Path(job.payload)), channel)
    except StageError as failure:
        traceback.print_exc()
        channel.send("failed", status=failure.status, reason=str(failure), peak_memory_mb=_peak_memory_mb())
        return
    if outcome is not None:
        model, result = outcome
        channel.send("ready", peak_memory_mb=_peak_memory_mb(), **result)
        _serve(job, model, channel)


def _prepared(job: Job, payload: Payload, channel: Channel) -> tuple[AcceleratedModel, dict[str, Any]]:
    """Convert and prove that the outputs can be right."""
    model = _stage("fail to convert", lambda: _prepare(job, payload, channel))
    channel.progress("running the sample")
    if job.is_original:
        model = _stage("fail to forward", lambda: _learn_facts(model, payload))
        return model, {"facts": {"structure": model.manifest.structure, "dynamic_batch": model.manifest.dynamic_batch}}
    return model, {"max_difference": _stage("fail to forward", lambda: _difference(model, payload))}


def _run(job: Job, payload: Payload, channel: Channel) -> tuple[AcceleratedModel, dict[str, Any]] | None:
    """Prepare, wait for the word to go on, measure; ``None`` when the parent does not want it any more."""
    import torch

    torch.set_num_threads(job.threads if job.is_original else job.prepare_threads)
    model, result = _prepared(job, payload, channel)
    _release_memory()
    channel.send("prepared")
    if (channel.receive() or {}).get("command") != "go":
        return None
    torch.set_num_threads(job.threads)
    if not job.is_original:
        sample = payload.arrays("sample")
        channel.progress("tuning")
        slow_ms = _stage("fail to forward", lambda: _too_slow(job, model, sample))
        if slow_ms is not None:
            return model, {**result, "early_stopped": True, "samples": slow_ms, **_finish(job, model, channel)}
        model = _stage("fail to forward", lambda: _tune(job, model, sample, channel))
    scorer = _stage("fail to forward", lambda: payload.load("scorer"))
    if scorer is not None:
        channel.progress("measuring accuracy")
        result["scores"] = _stage("fail to forward", lambda: _score(scorer, model))
    return model, {**result, **_finish(job, model, channel)}


def _stage(status: str, action: Callable[[], Any]) -> Any:
    """Run ``action``; whatever it raises becomes a row with ``status``."""
    try:
        return action()
    except MissingDependencyError as error:
        raise StageError("lack dependency", str(error)) from error
    except Exception as error:  # the user's model, the metric and five libraries may raise anything
        text = str(error) if isinstance(error, YoloxError) else f"{type(error).__name__}: {error}"
        raise StageError(status, next((line for line in text.splitlines() if line.strip()), text).strip()) from error


def _prepare(job: Job, payload: Payload, channel: Channel) -> AcceleratedModel:
    from yolox.inference.artifacts.model import AcceleratedModel
    from yolox.inference.backends import get_backend
    from yolox.inference.backends.base import Manifest
    from yolox.inference.methods import get_method

    if not job.is_original:
        sys.stderr.write(f"{keep_freed_memory()}\n")
    method = get_method(job.method)
    from yolox.inference.convert.flat import FlatModule

    channel.progress("converting")
    module = FlatModule(payload.load("model")).eval()
    context = _context(job, payload, channel)
    runner = get_backend(method.backend).prepare(module, method, context)
    manifest = Manifest(
        method=method.name,
        backend=method.backend,
        precision=method.precision.value,
        options=dict(method.options),
        settings=runner.settings,
        input_shapes=tuple(tuple(array.shape) for array in context.sample),
        input_dtypes=tuple(str(array.dtype) for array in context.sample),
        num_outputs=len(payload.arrays("reference")),
        dynamic_batch=context.dynamic_batch,
        int8_share=runner.int8_share,
        structure=job.facts.get("structure"),
        metadata=job.metadata,
    )
    return AcceleratedModel(runner, manifest)


def _context(job: Job, payload: Payload, channel: Channel) -> Any:
    from yolox.inference.backends.base import PrepareContext

    scorer: Scorer | None = payload.load("scorer") if job.original_scores else None

    def accuracy(predict: Callable[..., tuple[Any, ...]]) -> float:
        from yolox.inference.artifacts.structure import unflatten

        assert scorer is not None
        return scorer.signed(scorer.score(lambda *inputs: unflatten(job.facts.get("structure"), predict(*inputs))))

    work_dir = Path(job.work_dir)
    work_dir.mkdir(parents=True, exist_ok=True)
    return PrepareContext(
        sample=payload.arrays("sample"),
        calibration=payload.calibration(),
        threads=job.threads,
        work_dir=work_dir,
        dynamic_batch=bool(job.facts.get("dynamic_batch", True)),
        accuracy=accuracy if scorer else None,
        original_accuracy=scorer.signed(job.original_scores) if scorer else None,
        max_drop=job.max_drop,
        deadline_s=time.monotonic() + job.prepare_seconds,
        progress=channel.progress,
    )


def _score(scorer: Scorer, model: AcceleratedModel) -> dict[str, float]:
    try:
        return scorer.score(model)
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


def _too_slow(job: Job, model: AcceleratedModel, sample: tuple[Any, ...]) -> list[float] | None:
    """Return the times of three runs if they show that the method is hopeless."""
    if job.baseline_ms is None:
        return None
    samples: list[float] = []
    for _ in range(3):
        start = time.perf_counter()
        model.run(*sample)
        samples.append((time.perf_counter() - start) * 1e3)
        if min(samples) <= EARLY_STOP_FACTOR * job.baseline_ms:
            return None
    return samples


def _tune(job: Job, model: AcceleratedModel, sample: tuple[Any, ...], channel: Channel) -> AcceleratedModel:
    from dataclasses import replace

    from yolox.inference.search.tuning import tune

    runner, _ = tune(model.runner, sample, job.threads, job.tune_seconds, channel.progress)
    return replace(model, runner=runner)


def _finish(job: Job, model: AcceleratedModel, channel: Channel) -> dict[str, Any]:
    """Save the artifact and tidy up; a model that cannot be saved is still a measured row."""
    from yolox.inference.artifacts.model import folder_size_mb, save_model

    channel.progress("saving")
    shutil.rmtree(job.work_dir, ignore_errors=True)
    result: dict[str, Any] = {"settings": asdict(model.runner.settings), "int8_share": model.runner.int8_share}
    try:
        _stage("not saved", partial(save_model, model, Path(job.artifact)))
        result["size_mb"] = folder_size_mb(Path(job.artifact))
    except StageError as failure:
        traceback.print_exc()
        shutil.rmtree(job.artifact, ignore_errors=True)
        result["note"] = f"not saved: {failure}"
    return result


def _serve(job: Job, model: AcceleratedModel, channel: Channel) -> None:
    from yolox.inference.search.latency import MeasurePlan, measure

    sample = Payload(Path(job.payload)).arrays("sample")
    _release_memory()
    while (command := channel.receive()) is not None and command["command"] == "measure":
        try:
            samples = _stage(
                "fail to forward", partial(measure, lambda: model.run(*sample), MeasurePlan(**command["plan"]))
            )
        except StageError as failure:
            channel.send("failed", status=failure.status, reason=str(failure), peak_memory_mb=_peak_memory_mb())
            return
        channel.send("samples", samples=samples, peak_memory_mb=_peak_memory_mb())
        _release_memory()


def _peak_memory_mb() -> float | None:
    """Return the largest resident set of this process so far, in MB; mapped files count while they are in memory."""
    # not getrusage: its figure starts at the parent's size
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    return next(int(line.split()[1]) * 1024 / 1e6 for line in status.splitlines() if line.startswith("VmHWM"))


def _release_memory() -> None:
    """Give free pages back while others are measured: the processes of all methods wait side by side."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def run() -> None:
    """Start from the command line: ``JOB_FILE DESCRIPTOR``."""
    main(sys.argv[1], int(sys.argv[2]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # some libraries hang or crash in their exit handlers; everything is on disk by now
