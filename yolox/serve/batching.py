"""Requests that arrive together go through the network together; what the queue cannot hold is refused at once."""

from __future__ import annotations

import queue
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field

from yolox.errors import YoloxError
from yolox.prediction.models import Predictor
from yolox.serve.metrics import Metrics
from yolox.structures import Detections, Image


class BusyError(YoloxError):
    """The queue is full."""


@dataclass
class _Job:
    image: Image
    confidence: float
    nms_iou: float
    answer: Future[Detections] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)


class Batcher:
    """Runs a predictor in a thread of its own, on whatever waits, up to a batch.

    Args:
        predictor: The model.
        batch_size: Images that go through the network together, at most.
        max_wait_ms: How long the first image of a batch waits for others; 0 takes what is there.
        queue_size: Images that may wait; one more is refused.
        metrics: Counts images and times.
    """

    def __init__(
        self, predictor: Predictor, batch_size: int, max_wait_ms: float, queue_size: int, metrics: Metrics
    ) -> None:
        self.predictor = predictor
        self._batch_size = batch_size
        self._max_wait_s = max_wait_ms / 1000.0
        self._metrics = metrics
        self._jobs: queue.Queue[_Job | None] = queue.Queue(queue_size)
        self._thread = threading.Thread(target=self._run, name="predictions", daemon=True)

    @property
    def waiting(self) -> int:
        """Number of images that wait."""
        return self._jobs.qsize()

    @property
    def alive(self) -> bool:
        """Whether predictions are made."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after what waits now."""
        if self._thread.is_alive():
            self._jobs.put(None)
            self._thread.join()

    def submit(self, image: Image, confidence: float, nms_iou: float) -> Future[Detections]:
        """Queue an image and return the future of its detections; a future that was cancelled costs nothing more.

        Raises:
            BusyError: When the queue is full.
        """
        job = _Job(image, confidence, nms_iou)
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            raise BusyError("too many requests are waiting; try again later") from None
        return job.answer

    def _run(self) -> None:
        while (first := self._jobs.get()) is not None:
            jobs, last = self._gather(first)
            jobs = [job for job in jobs if job.answer.set_running_or_notify_cancel()]
            if jobs:
                self._predict(jobs)
            if last:
                return

    def _gather(self, first: _Job) -> tuple[list[_Job], bool]:
        """Return a batch of jobs with equal thresholds, and whether it is the last one."""
        jobs = [first]
        until = first.arrived + self._max_wait_s
        while len(jobs) < self._batch_size:
            try:
                job = self._jobs.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if job is None:
                return jobs, True
            jobs.append(job)
        return jobs, False

    def _predict(self, jobs: list[_Job]) -> None:
        groups: dict[tuple[float, float], list[_Job]] = {}
        for job in jobs:
            groups.setdefault((job.confidence, job.nms_iou), []).append(job)
        for (confidence, nms_iou), group in groups.items():
            try:
                found, elapsed_ms = self.predictor([job.image for job in group], confidence, nms_iou)
            except Exception as error:  # noqa: BLE001 - goes to those who asked; the service goes on
                for job in group:
                    job.answer.set_exception(error)
                continue
            self._metrics.batch(len(group), elapsed_ms / 1000.0)
            for job, one in zip(group, found, strict=True):
                job.answer.set_result(one)
