"""From a request to a training sample: image, mosaic, MixUp and the last transforms, drawn by the request itself."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from torch.utils.data import Dataset

from yolox.data.image_ops import FILL
from yolox.data.image_source import ImageSource
from yolox.data.mosaic import Affine, mix_up, mosaic, mosaic_centre, visible_places, warp
from yolox.data.sampling import SampleRequest, WeightedImages
from yolox.data.transforms import TrainTransform
from yolox.structures import Sample

_MAX_REPLACEMENTS = 64
_NO_OBJECTS = (np.zeros((0, 4), np.float32), np.zeros(0, np.int64))


@dataclass(frozen=True)
class Augmentation:
    """How training samples vary.

    Args:
        transform: Colour, flip and letterbox, for every sample.
        mosaic_prob: How often a request that allows it becomes a mosaic.
        mixup_prob: How often a mosaic with objects is blended with another image.
        mixup_scales: Range of the partner's scale.
        affine: Ranges of the affine transform after a mosaic.
    """

    transform: TrainTransform
    mosaic_prob: float = 1.0
    mixup_prob: float = 1.0
    mixup_scales: tuple[float, float] = (0.5, 1.5)
    affine: Affine = field(default_factory=Affine)


class TrainingSamples(Dataset[Sample]):
    """Makes the sample of a request.

    Args:
        source: The images.
        augmentation: How they vary.
        weighted: Draws the other images of a mosaic and of MixUp; ``None`` draws all alike.
    """

    def __init__(self, source: ImageSource, augmentation: Augmentation, weighted: WeightedImages | None = None) -> None:
        self.source = source
        self.augmentation = augmentation
        self._labelled = source.dataset.labelled()
        self._weighted = weighted
        self._weighted_labelled = None if weighted is None else WeightedImages(weighted.weights[self._labelled])

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, request: SampleRequest) -> Sample:
        """Return the sample of a request, always the same for the same request."""
        rng = request.generator()
        settings = self.augmentation
        if request.mosaic and rng.random() < settings.mosaic_prob:
            sample = self._mosaic(request.index, rng)
        else:
            sample = self._read(request.index, rng)
        return settings.transform(sample, rng)

    def _mosaic(self, index: int, rng: np.random.Generator) -> Sample:
        target, settings = self.augmentation.transform.target, self.augmentation
        others = rng.integers(len(self.source), size=3) if self._weighted is None else self._weighted.draw(rng, 3)
        indices = [index, *(int(other) for other in others)]
        centre, matrix = mosaic_centre(target, rng), settings.affine.draw(target, rng)
        shown = visible_places([self.source.fitted(i) for i in indices], centre, matrix, target)
        parts = [self._read(i, rng) if seen else self._unread(i) for i, seen in zip(indices, shown, strict=True)]
        sample = warp(mosaic(parts, target, centre), target, matrix)
        if len(sample.labels) and rng.random() < settings.mixup_prob:
            sample = mix_up(sample, self._read(self._partner(rng), rng), settings.mixup_scales, rng)
        return sample

    def _partner(self, rng: np.random.Generator) -> int:
        weighted = self._weighted_labelled
        place = rng.integers(len(self._labelled)) if weighted is None else weighted.draw(rng, 1)[0]
        return int(self._labelled[place])

    def _unread(self, index: int) -> Sample:
        """Return a grey picture without objects in place of an image that nobody will see."""
        dataset = self.source.dataset
        grey = np.broadcast_to(np.uint8(FILL), (*self.source.fitted(index), 3))
        return Sample(grey, *_NO_OBJECTS, int(dataset.image_ids[index]), dataset.size(index))

    def _read(self, index: int, rng: np.random.Generator) -> Sample:
        """Return an image, or in place of an unreadable one another that the request's generator chooses."""
        for _ in range(_MAX_REPLACEMENTS):
            sample = self.source.sample(index)
            if sample is not None:
                return sample
            index = int(rng.integers(len(self.source)))
        # hopeless: the loader ends the run as soon as it sees how many images are bad
        blank = np.full((*self.source.target, 3), FILL, np.uint8)
        return Sample(blank, *_NO_OBJECTS, -1, self.source.target)
