"""Repeat-factor sampling: images with rare classes are drawn more often.

After Gupta, Dollár and Girshick, "LVIS: A Dataset for Large Vocabulary Instance Segmentation", 2019, arXiv:1908.03195.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from yolox.data.coco_dataset import CocoDataset

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
