"""Which image is drawn when: one endless stream of requests, a pure function of seed and position.

Passes through the data set follow each other without gaps; they are permutations unless images are weighted. Batch k
holds positions ``k * B`` up to ``(k + 1) * B``. Since a request carries all that its sample depends on, the number of
workers or ranks changes no sample, and a run can go on from any batch.

Weights come from repeat-factor sampling, which draws images with rare classes more often: Gupta, Dollár and Girshick,
"LVIS: A Dataset for Large Vocabulary Instance Segmentation", 2019, arXiv:1908.03195.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from yolox.data.coco_dataset import CocoDataset
from yolox.errors import DataError, UsageError

_ORDER, _SAMPLE = 0, 1  # keep the two families of generators apart
_NUM_SHOWN = 5


class WeightedImages:
    """Images drawn in proportion to weights of at least 1.

    Args:
        weights: ``[N]`` float64.
    """

    def __init__(self, weights: NDArray[np.float64]) -> None:
        self.weights = weights
        self._ends = np.cumsum(weights)

    @property
    def draws_per_pass(self) -> int:
        """How many draws a pass has: the sum of the weights, rounded up."""
        return math.ceil(round(float(self._ends[-1]), 6))

    def one_pass(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return the indices of a pass in random order, `draws_per_pass` of them.

        Every image comes as often as its share of the draws says, rounded up or down at random such that the mean is
        exact (systematic sampling), and so at least once.
        """
        order = rng.permutation(len(self.weights))
        ends = np.cumsum(self.weights[order]) * (self.draws_per_pass / self._ends[-1])
        points = np.arange(self.draws_per_pass) + rng.random()
        places = np.searchsorted(ends, points, side="right").clip(max=len(order) - 1)
        return np.asarray(rng.permutation(order[places]), np.int64)

    def draw(self, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        """Return ``count`` indices, each independent of the others."""
        places = np.searchsorted(self._ends, rng.random(count) * self._ends[-1], side="right")
        return np.asarray(places.clip(max=len(self.weights) - 1), np.int64)


def class_repeats(dataset: CocoDataset, threshold: float) -> NDArray[np.float64]:
    """Return ``[C]``, r(c) = max(1, sqrt(threshold / f(c))), f(c) being the share of images with class c.

    Classes without any object have 1.
    """
    owners = dataset.owners()[~dataset.crowd]
    pairs = np.unique(np.stack([owners, dataset.labels[~dataset.crowd]]), axis=1)
    frequency = np.bincount(pairs[1], minlength=len(dataset.categories)) / max(1, len(dataset))
    with np.errstate(divide="ignore"):
        factors = np.sqrt(threshold / frequency)
    return np.where(frequency > 0, np.maximum(1.0, factors), 1.0)


def repeat_factors(dataset: CocoDataset, threshold: float) -> NDArray[np.float64]:
    """Return ``[N]``, how often a pass draws each image: the largest factor of the classes in it, 1 without objects."""
    factors = np.ones(len(dataset))
    owners = dataset.owners()[~dataset.crowd]
    np.maximum.at(factors, owners, class_repeats(dataset, threshold)[dataset.labels[~dataset.crowd]])
    return factors


def describe_repeats(dataset: CocoDataset, threshold: float) -> str:
    """Return the line that says what repeat-factor sampling does to a data set."""
    factors = class_repeats(dataset, threshold)
    rare = np.flatnonzero(factors > 1)
    draws = WeightedImages(repeat_factors(dataset, threshold)).draws_per_pass
    most = rare[np.argsort(-factors[rare], kind="stable")][:_NUM_SHOWN]
    shown = ", ".join(f"{dataset.class_names[index]} {factors[index]:.2f}" for index in most)
    return (
        f"repeat_threshold {threshold:g}: {len(rare)} of {len(factors)} classes are in fewer images than that; "
        f"an epoch draws {draws} images from {len(dataset)}" + (f" (times: {shown})" if shown else "")
    )


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
