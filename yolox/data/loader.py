"""Loaders: worker processes that live as long as the run, and batches in a fixed order."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import types
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from yolox.cpu.allocator import keep_freed_memory
from yolox.data.coco_dataset import CocoDataset
from yolox.data.image_source import ImageHealth, ImageSource
from yolox.data.sampling import RequestStream
from yolox.data.shared_batches import PREFETCH, BatchPartMaker, BatchParts, collate_readable, collect
from yolox.data.training_samples import TrainingSamples
from yolox.data.transforms import letterbox_sample
from yolox.processes.start import choose_socket_folder
from yolox.structures import Batch, Sample, Size

_LOG = logging.getLogger(__name__)
_NICE = 10  # the computation's threads wait for each other, so what a worker takes from one it takes from all


def default_num_workers(num_cores: int) -> int:
    """Return how many workers keep ``num_cores`` computing cores busy without crowding them out.

    One a core on small machines, since every core is idle at some time of a step; measured by
    ``benchmarks.data_pipeline``, a worker makes 140 mosaics of COCO files a second, and the smallest network trains on
    some 25 images a second and core.
    """
    return max(1, min(16, max(min(num_cores, 8), (num_cores + 2) // 3)))


def default_start_method() -> str:
    """Return how worker processes start.

    Not ``fork``: a copy of a process whose OpenMP and oneDNN threads run may hang, and every page that the parent
    writes afterwards has to be copied. The fork server is a small process that has imported this module once.
    """
    return "forkserver" if sys.platform.startswith("linux") else "spawn"


def worker_context(start_method: str | None) -> Any:
    """Return the multiprocessing context of the workers."""
    choose_socket_folder()
    _start_resource_tracker()
    context: Any = multiprocessing.get_context(start_method or default_start_method())
    if context.get_start_method() == "forkserver":
        # torch and cv2 also by name: some Python versions look for preloaded modules in site-packages only
        context.set_forkserver_preload(["torch", "cv2", __name__])
        _start_fork_server()
    return context


def _start_resource_tracker() -> None:
    """Start Python's process that removes the semaphores of a killed one, and keep it from printing a warning.

    It is started before the fork server, too, as it would lift that one's block of signals.
    """
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [before, "ignore:resource_tracker:UserWarning"]))
    try:
        resource_tracker.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before


def _start_fork_server() -> None:
    """Start the fork server deaf to Ctrl-C, which a terminal sends to it as well, in the middle of its imports."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the new process inherits what is blocked
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_workers(loader: DataLoader[Any]) -> Iterator[Any]:
    """Return the loader's iterator; a signal to stop waits until the workers run, since half-started ones complain."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _without_main() -> Iterator[None]:
    """Start processes that leave the user's script alone.

    Workers need nothing from ``__main__``. Importing it in each of them costs seconds where a script imports Lightning,
    and starts the script all over again where it does not guard its last lines.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def init_worker(_worker: int) -> None:
    """Prepare a worker: one thread, behind the computation in the queue for cores, gone when its parent is gone."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # blocked while workers start
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which still needs batches to stop in order
    keep_freed_memory()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    if hasattr(os, "nice"):
        os.nice(_NICE)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_with, args=(parent.sentinel,), daemon=True).start()


def _exit_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _number_of_workers(wanted: int) -> int:
    """Return ``wanted``, or 0 with a word where processes cannot have semaphores: the system keeps them in /dev/shm.

    PyTorch's loader makes 3 for each process and 8 besides; where there is room for some of them it leaves a traceback.
    """
    if wanted:
        try:
            [multiprocessing.Lock() for _ in range(3 * wanted + 8)]
        except OSError as error:
            _LOG.warning(
                "no loader processes: /dev/shm, which they need, cannot be written (%s); this process reads the images "
                "itself, which is slower. Free it, or start the container with a larger --shm-size",
                error.strerror,
            )
            return 0
    return wanted


class _Batches:
    """The batches of lists of requests, made by workers or by this process; None where no image could be read.

    Args:
        samples: Makes the sample of a request, or None.
        requests: For each batch its requests; gone through again with every ``iter()``.
        shape: Images of a batch, at most, and their size.
        num_workers: Worker processes; 0 works in this process.
        start_method: How they start.
    """

    def __init__(
        self,
        samples: Dataset[Any],
        requests: Iterable[Sequence[Any]],
        shape: tuple[int, Size],
        num_workers: int,
        start_method: str | None,
    ) -> None:
        self._samples, self._requests = samples, requests
        num_workers = _number_of_workers(num_workers)
        self._maker = BatchPartMaker(samples, shape[0], shape[1], num_workers) if num_workers else None
        if self._maker is not None:
            self._loader: DataLoader[Any] = DataLoader(
                self._maker,
                batch_size=None,
                sampler=BatchParts(requests, self._maker),
                collate_fn=_as_it_is,
                num_workers=num_workers,
                prefetch_factor=PREFETCH,
                persistent_workers=True,
                multiprocessing_context=worker_context(start_method),
                worker_init_fn=init_worker,
                generator=torch.Generator(),  # it would otherwise draw from the global one
            )

    def __iter__(self) -> Iterator[Batch | None]:
        if self._maker is not None:
            with _without_main():
                return collect(_start_workers(self._loader), self._maker)
        made = ([self._samples[request] for request in requests] for requests in self._requests)
        return (collate_readable(samples) for samples in made)


def _as_it_is(made: Any) -> Any:
    return made


class TrainLoader:
    """Training batches of an endless stream, an epoch at a time.

    Each ``iter()`` yields the batches up to the next multiple of ``len(self)`` and goes on where the one before
    stopped; the workers stay and fill their queue across epochs.

    Args:
        samples: Makes samples.
        stream: Says which.
        num_workers: Worker processes; 0 works in this process.
        start_method: How workers start (``fork``, ``forkserver``, ``spawn``); by default as is safe here.
    """

    def __init__(
        self, samples: TrainingSamples, stream: RequestStream, num_workers: int, start_method: str | None = None
    ) -> None:
        self.samples = samples
        self.stream = stream
        self.num_workers = num_workers
        self.next_batch = 0
        self._cuts = np.zeros(0, np.int64)  # objects left out of those samples of this epoch that lost any
        self._cuts_told = False
        self._start_method = start_method
        self._iterator: Iterator[Batch | None] | None = None

    def __len__(self) -> int:
        return self.stream.batches_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(len(self) - self.next_batch % len(self)):
            if self._iterator is None:
                self._iterator = self._start()
            batch = next(self._iterator)
            assert batch is not None, "training samples replace what cannot be read"
            self.next_batch += 1
            if self.samples.source.health is not None:
                self.samples.source.health.report()
            self._cuts = np.append(self._cuts, batch.num_cut[batch.num_cut > 0])
            yield batch
        self._tell_cuts()

    def _tell_cuts(self) -> None:
        """Tell at the end of an epoch that objects were left out, once in a run."""
        if len(self._cuts) and not self._cuts_told:
            self._cuts_told = True
            limit = self.samples.augmentation.transform.max_labels
            _LOG.warning(
                "%d training samples of this epoch, mosaics as a rule, had more than %d objects; %d objects were left "
                "out; 'max_labels %d' would have taken all",
                *(len(self._cuts), limit, self._cuts.sum(), limit + self._cuts.max()),
            )
        self._cuts = self._cuts[:0]

    def seek(self, batch: int) -> None:
        """Go on with batch number ``batch`` of the stream."""
        if batch != self.next_batch:
            self.close()
            self.next_batch = batch

    def close(self) -> None:
        """End the workers; a later ``iter()`` starts new ones."""
        self._iterator = None

    def _start(self) -> Iterator[Batch | None]:
        source = self.samples.source
        if source.health is None:
            source.health = ImageHealth(source.dataset)
        shape = len(next(self.stream.batches())), self.samples.augmentation.transform.target
        requests = self.stream.batches(self.next_batch)
        return iter(_Batches(self.samples, requests, shape, self.num_workers, self._start_method))


class _ValSamples(Dataset[Any]):
    def __init__(self, source: ImageSource) -> None:
        self._source = source

    def __getitem__(self, index: int) -> Sample | None:
        image = self._source.image(index)
        if image is None:
            return None
        dataset = self._source.dataset
        empty = torch.zeros(0).numpy()
        sample = Sample(
            image, empty.reshape(0, 4), empty.astype("int64"), int(dataset.image_ids[index]), dataset.size(index)
        )
        return letterbox_sample(sample, self._source.target)


class ValLoader:
    """Every image once, in order, letterboxed, without labels (G = 0); an unreadable image is left out.

    Args:
        source: The images.
        batch_size: Images per batch; the last one may be smaller.
        num_workers: Worker processes; 0 works in this process.
        rank: This process.
        world: Number of processes, each of which takes every ``world``-th image.
        start_method: As for ``TrainLoader``.
    """

    def __init__(
        self,
        source: ImageSource,
        batch_size: int,
        num_workers: int,
        *,
        rank: int = 0,
        world: int = 1,
        start_method: str | None = None,
    ) -> None:
        indices = list(range(rank, len(source), world))
        self.source = source
        self.num_workers = num_workers
        self._batches = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
        self._start_method = start_method
        self._loader: _Batches | None = None

    @property
    def dataset(self) -> CocoDataset:
        """The index of the images."""
        return self.source.dataset

    @property
    def size(self) -> Size:
        """Size of the network's input."""
        return self.source.target

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        if self.source.health is None:
            self.source.health = ImageHealth(self.source.dataset)
        if self._loader is None:
            shape = max(map(len, self._batches), default=1), self.size
            samples = _ValSamples(self.source)
            self._loader = _Batches(samples, self._batches, shape, self.num_workers, self._start_method)
        for batch in self._loader:
            self.source.health.report()
            if batch is not None:
                yield batch

    def close(self) -> None:
        """End the workers; a later ``iter()`` starts new ones."""
        self._loader = None
