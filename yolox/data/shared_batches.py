"""How batches come from worker processes: each worker makes a part of every batch, straight into shared memory.

All workers work on the same batch at the same time, so that what they take from the computation they take from all
cores alike: a computation that waits for its slowest core loses half as much on two cores as to one busy worker.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from yolox.data.mapped_file import MappedFile
from yolox.data.transforms import collate
from yolox.structures import Batch, Image, Sample, Size

PREFETCH = 2
"""BatchParts that each worker may be ahead."""
_NO_PIXELS = np.empty((0, 0, 3), np.uint8)


@dataclass(frozen=True)
class BatchPart:
    """A part of a batch that one worker makes.

    Args:
        slot: Which batch buffer it goes to.
        start: Its first row there.
        requests: What to make.
    """

    slot: int
    start: int
    requests: Sequence[Any]


class BatchPartMaker(Dataset[Any]):
    """Makes parts in a worker: the pixels go to shared memory, the rest is returned.

    Args:
        samples: Makes the sample of a request, of size ``size``, or None.
        batch_size: Images of a batch, at most.
        size: Size of the images.
        num_workers: Number of workers.
    """

    def __init__(self, samples: Dataset[Any], batch_size: int, size: Size, num_workers: int) -> None:
        self.num_parts = max(1, min(num_workers, batch_size))
        # the batch that is copied out, and those that parts under way belong to
        self.num_slots = 2 + -(-num_workers * PREFETCH // self.num_parts)
        self._samples = samples
        self._shape = (self.num_slots, batch_size, *size, 3)
        self._file = MappedFile(int(np.prod(self._shape)))

    @property
    def slots(self) -> Image:
        """The batch buffers ``[slots, B, H, W, 3]``."""
        return self._file.bytes.reshape(self._shape)

    def __getitem__(self, part: BatchPart) -> tuple[BatchPart, list[Sample | None]]:
        """Make a part; its samples come back without their pixels."""
        made: list[Sample | None] = []
        rows = self.slots[part.slot, part.start :]
        for row, request in enumerate(part.requests):
            sample = self._samples[request]
            if sample is not None:
                rows[row] = sample.image
                sample = replace(sample, image=_NO_PIXELS)
            made.append(sample)
        return part, made


class BatchParts:
    """The parts of batches; every batch has ``num_parts`` of them, empty ones where it is too small.

    Args:
        batches: For each batch its requests.
        maker: Will make them.
    """

    def __init__(self, batches: Iterable[Sequence[Any]], maker: BatchPartMaker) -> None:
        self._batches, self._num_parts, self._num_slots = batches, maker.num_parts, maker.num_slots

    def __iter__(self) -> Iterator[BatchPart]:
        for number, requests in enumerate(self._batches):
            edges = [len(requests) * i // self._num_parts for i in range(self._num_parts + 1)]
            for start, end in pairwise(edges):
                yield BatchPart(number % self._num_slots, start, requests[start:end])


def collect(made: Iterable[tuple[BatchPart, list[Sample | None]]], maker: BatchPartMaker) -> Iterator[Batch | None]:
    """Yield the batches whose parts arrive in order; None for one without a readable image."""
    arriving = iter(made)
    while parts := list(islice(arriving, maker.num_parts)):
        samples = [sample for _, part_samples in parts for sample in part_samples]
        yield collate_readable(samples, maker.slots[parts[0][0].slot])


def collate_readable(samples: Sequence[Sample | None], pixels: Image | None = None) -> Batch | None:
    """Return the batch of those samples that are not None, or None.

    Args:
        samples: The samples.
        pixels: A buffer ``[B, H, W, 3]`` that holds their images; it is copied, for it will be filled again.
    """
    kept = [sample for sample in samples if sample is not None]
    if not kept or pixels is None:
        return collate(kept) if kept else None
    rows = [row for row, sample in enumerate(samples) if sample is not None]
    images = pixels[rows] if len(rows) < len(samples) else pixels[: len(samples)].copy()
    return collate(kept, torch.from_numpy(images))
