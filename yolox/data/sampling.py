"""Which image is drawn when: one endless stream of requests, a pure function of seed and position.

Passes through the data set follow each other without gaps; they are permutations unless images are weighted. Batch k
holds positions ``k * B`` up to ``(k + 1) * B``. Since a request carries all that its sample depends on, the number of
workers or ranks changes no sample, and a run can go on from any batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from yolox.data.repeat_factors import WeightedImages
from yolox.errors import DataError, UsageError

_ORDER, _SAMPLE = 0, 1  # keep the two families of generators apart


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """One training sample to make: image ``index``, with or without the chance of a mosaic.

    ``seed`` and ``position`` (in the stream) alone fix its random numbers.
    """

    index: int
    mosaic: bool
    seed: int
    position: int

    def generator(self) -> np.random.Generator:
        """Return a fresh generator that is this request's own."""
        return np.random.default_rng([self.seed, _SAMPLE, self.position])


@dataclass(frozen=True)
class RequestStream:
    """The endless stream of batches of requests.

    Args:
        num_images: Images in the data set.
        batch_size: Samples per step over all ranks together.
        seed: Fixes order and samples.
        rank: This process.
        world: Number of processes; together they draw each image of a permutation exactly once.
        no_mosaic_from_batch: The batch at which the final phase begins; ``None`` for never.
        weighted: Draws some images more often; ``None`` draws each once in a pass.

    Raises:
        DataError: When there is no image.
        UsageError: When the batch does not divide among the ranks.
    """

    num_images: int
    batch_size: int
    seed: int = 0
    rank: int = 0
    world: int = 1
    no_mosaic_from_batch: int | None = None
    weighted: WeightedImages | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.num_images < 1:
            raise DataError("the training set has no images; expected at least one.")
        if self.batch_size < 1 or self.batch_size % self.world:
            raise UsageError(
                f"total batch {self.batch_size} does not divide among {self.world} processes; "
                f"expected a positive multiple of {self.world}. Change the batch or the number of processes."
            )
        if not 0 <= self.rank < self.world:
            raise UsageError(f"rank {self.rank} of {self.world} processes does not exist; expected 0 <= rank < world.")
        if self.seed < 0:
            raise UsageError(f"seed {self.seed} is negative; expected 0 or more.")

    @property
    def draws_per_pass(self) -> int:
        """Samples of a pass through the data set."""
        return self.num_images if self.weighted is None else self.weighted.draws_per_pass

    @property
    def batches_per_epoch(self) -> int:
        """Steps of an epoch: enough to see every image once."""
        return -(-self.draws_per_pass // self.batch_size)

    def permutation(self, number: int) -> NDArray[np.int64]:
        """Return the order of the images in pass ``number`` through the data set."""
        rng = np.random.default_rng([self.seed, _ORDER, number])
        return rng.permutation(self.num_images) if self.weighted is None else self.weighted.one_pass(rng)

    def batches(self, start: int = 0) -> Iterator[list[SampleRequest]]:
        """Yield this rank's share of every batch from number ``start`` on, for ever."""
        current, order = -1, np.empty(0, np.int64)
        batch = start
        while True:
            mosaic = self.no_mosaic_from_batch is None or batch < self.no_mosaic_from_batch
            requests = []
            first = batch * self.batch_size + self.rank
            for position in range(first, (batch + 1) * self.batch_size, self.world):
                number, place = divmod(position, self.draws_per_pass)
                if number != current:
                    current, order = number, self.permutation(number)
                requests.append(SampleRequest(int(order[place]), mosaic, self.seed, position))
            yield requests
            batch += 1
