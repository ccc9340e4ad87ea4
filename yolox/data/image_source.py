"""Images of a data set, resized to the working size and with their boxes; bad files are noted, not fatal."""

from __future__ import annotations

import logging
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from yolox.data.coco_dataset import CocoDataset
from yolox.data.image_files import read_image
from yolox.data.image_ops import fit_ratio, fitted_size, resize
from yolox.data.mapped_file import MappedFile
from yolox.errors import DataError
from yolox.structures import Image, Sample, Size

_LOG = logging.getLogger(__name__)
_UNSEEN, _GOOD, _BAD = 0, 1, 2
TOO_MANY = 0.1
"""Share of unreadable images at which a run ends; of a small set, three may be bad as long as half are good."""
_FEW = 3
_FIRST = 32  # images after which a folder of rubbish is recognised


def too_many_bad(num_bad: int, num_images: int) -> bool:
    """Return whether so many unreadable images end a run."""
    return num_bad > max(TOO_MANY * num_images, min(_FEW, num_images / 2))


class ImageCache(Protocol):
    """Keeps resized images between reads."""

    def get(self, index: int) -> Image | None:
        """Return the kept image, or ``None``."""

    def put(self, index: int, image: Image) -> None:
        """Keep an image."""


class ImageHealth:
    """Which images could be read. Workers mark in shared memory; the main process counts, names and decides.

    Args:
        dataset: Whose images.
    """

    def __init__(self, dataset: CocoDataset) -> None:
        self._dataset = dataset
        self._file = MappedFile(max(1, len(dataset)))
        self._num_named = 0

    def mark(self, index: int, *, good: bool) -> None:
        """Note that an image was read, or could not be."""
        self._states[index] = _GOOD if good else _BAD

    @property
    def _states(self) -> NDArray[np.uint8]:
        return self._file.bytes[: len(self._dataset)]

    @property
    def num_bad(self) -> int:
        """Number of images found unreadable so far."""
        return int((self._states == _BAD).sum())

    def report(self) -> None:
        """Name the bad images that were not named yet.

        Raises:
            DataError: When more than a tenth of all images is bad (of few images, three or half of them), or most of
                the first ones are.
        """
        num_bad = self.num_bad
        if num_bad == self._num_named:
            return
        bad = np.flatnonzero(self._states == _BAD).tolist()
        names = [str(self._dataset.path(index)) for index in bad]
        self._num_named = num_bad
        num_seen = int((self._states != _UNSEEN).sum())
        listed = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
        if too_many_bad(num_bad, len(self._dataset)) or (num_seen >= _FIRST and num_bad > num_seen / 2):
            raise DataError(
                f"{num_bad} of the {num_seen} images read from '{self._dataset.source}' are missing, unreadable or "
                f"truncated: {listed}. Up to {TOO_MANY:.0%} are skipped; replace these files or remove their labels."
            )
        _LOG.warning(
            "%d of %d images are missing, unreadable or truncated and are skipped: %s",
            *(num_bad, len(self._dataset), listed),
        )


class ImageSource:
    """Reads samples at their working size.

    Args:
        dataset: The index.
        target: Every image is resized to fit into this.
        reduced_decode: Decode JPEG files at a fraction of their size where they are shrunk further anyway. Up to twice
            as fast for large photographs; the pixels are smoother than those of a plain bilinear resize (by 5 to 9 grey
            levels on average), so it is off in evaluation and by default.
        cache: Keeps the resized images.
        health: Where unreadable images are noted.
    """

    def __init__(
        self,
        dataset: CocoDataset,
        target: Size,
        *,
        reduced_decode: bool = False,
        cache: ImageCache | None = None,
        health: ImageHealth | None = None,
    ) -> None:
        self.dataset = dataset
        self.target = target
        self.cache = cache
        self.health = health
        self._reduced_decode = reduced_decode

    def __len__(self) -> int:
        return len(self.dataset)

    def fitted(self, index: int) -> Size:
        """Return the working size of an image, from the index alone."""
        return fitted_size(self.dataset.size(index), self.target)

    def image(self, index: int) -> Image | None:
        """Return an image resized to fit into ``target``, or ``None`` when it cannot be read."""
        if self.cache is not None:
            kept = self.cache.get(index)
            if kept is not None:
                return kept
        size, fitted = self.dataset.size(index), self.fitted(index)
        image = read_image(self.dataset.path(index), size, fitted if self._reduced_decode else None)
        if self.health is not None:
            self.health.mark(index, good=image is not None)
        if image is None:
            return None
        # The labels' size rules: pixels of any other size are brought to what the labels describe
        image = resize(image, fitted)
        if self.cache is not None:
            self.cache.put(index, image)
        return image

    def sample(self, index: int) -> Sample | None:
        """Return an image with its objects, both at the working size, or ``None`` when it cannot be read."""
        image = self.image(index)
        if image is None:
            return None
        size = self.dataset.size(index)
        boxes, labels = self.dataset.objects(index)
        boxes = boxes * np.float32(fit_ratio(size, self.target))
        return Sample(image, boxes, labels, int(self.dataset.image_ids[index]), size)
