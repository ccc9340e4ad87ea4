"""What a process of a cluster does with its part of the images: load the model once, predict, send boxes back."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from yolox.errors import YoloxError
from yolox.precision_names import EvalPrecision
from yolox.prediction.run import Thresholds, predict
from yolox.prediction.sources import Picture, SharedImage
from yolox.structures import Detections, Size

if TYPE_CHECKING:
    from yolox.config import Experiment
    from yolox.prediction.models import Predictor

_MOST_IMAGES = 128  # of a part: about a second of work, so that a lost part is soon repeated
_PARTS_EACH = 4  # parts for each process at least, so that none waits long for the last one


@dataclass(frozen=True)
class Found:
    """What was found in one image.

    Args:
        size: Height and width of the image.
        detections: In pixels of the image.
        elapsed_ms: Milliseconds of network and suppression.
    """

    size: Size
    detections: Detections
    elapsed_ms: float


Answer = list[Found | None] | YoloxError
"""Of each image of a part what was found, None where it cannot be read; or why nothing can be predicted."""


@dataclass(frozen=True)
class ClusterModel:
    """The model as every process of the cluster loads it; the arguments are those of `models.load_predictor`."""

    model: str
    precision: EvalPrecision = "32"
    input_size: int | tuple[int, int] | None = None
    experiment: Experiment | None = None
    trust: bool = False


@dataclass(frozen=True)
class Work:
    """Predicts a part of the images in a process of a cluster.

    Args:
        model: The model.
        thresholds: Which boxes count.
        batch_size: Images that go through the network together.
        threads: Threads of the network.
    """

    model: ClusterModel
    thresholds: Thresholds
    batch_size: int
    threads: int = 1

    def __call__(self, part: Sequence[SharedImage]) -> Answer:
        """Return what was found in each image of ``part``; an error of the user is an answer, not worth a retry."""
        found: list[Found | None] = [None] * len(part)
        try:
            predictor = _predictor(self.model, self.threads)
            for result in predict(predictor, _Part(part), self.thresholds, self.batch_size):
                found[result.index] = Found(result.size, result.detections, result.elapsed_ms)
        except YoloxError as error:
            return error
        return found


@lru_cache(maxsize=1)
def _predictor(model: ClusterModel, threads: int) -> Predictor:
    """Return the model of this process, which is loaded once."""
    from yolox.prediction.models import load_predictor

    logging.getLogger("yolox").setLevel(logging.ERROR)  # the machine that asked has told what there is to tell
    return load_predictor(**vars(model), threads=threads)


@dataclass(frozen=True)
class _Part:
    """The pictures of a part that can be read, each with its place in the part."""

    items: Sequence[SharedImage]
    live: bool = False

    def __iter__(self) -> Iterator[Picture]:
        for number, item in enumerate(self.items):
            image = item.read()
            if image is not None:
                yield Picture(image, item.name, index=number)


def split(items: Sequence[Any], places: int, batch_size: int) -> Iterator[Sequence[Any]]:
    """Yield the items in parts of whole batches: several for each of ``places`` processes, none of them long."""
    even = -(-len(items) // (_PARTS_EACH * places))
    batches = max(1, min(_MOST_IMAGES, even) // batch_size)
    length = batches * batch_size
    for start in range(0, len(items), length):
        yield items[start : start + length]
