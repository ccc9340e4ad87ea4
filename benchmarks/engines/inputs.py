"""What all engines are given: images to run, images to calibrate on, and files that converters start from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PROGRAM_BATCHES = (1, 8)
"""Batch sizes of the programs for converters that fix it; a larger batch runs in pieces."""

FLOAT_CONVOLUTIONS = 25
"""In rows that are mixed by hand so many first convolutions stay in float, and the predicting ones with all after them.

With YOLOX-Nano in LiteRT, of which 8 bits as they come leave AP 0.209 of 0.340, the predicting ones alone give 0.230,
10 more 0.325, 25 more 0.341 and 50 more 0.331.
"""
PREDICTION_CHANNELS = (80, 4, 1)
"""Outputs of the convolutions that predict classes, boxes and objectness."""


@dataclass(frozen=True)
class Inputs:
    """Files of one network that all engines share; read without PyTorch.

    Args:
        folder: Where they lie; `benchmarks.engines.sources` writes them.
    """

    folder: Path

    @property
    def images(self) -> NDArray[np.uint8]:
        """Letterboxed images ``[N, 3, H, W]``."""
        found: NDArray[np.uint8] = np.load(self.folder / "images.npy", mmap_mode="r")
        return found

    @property
    def calibration(self) -> NDArray[np.uint8]:
        """Other letterboxed images ``[N, 3, H, W]``, for int8."""
        found: NDArray[np.uint8] = np.load(self.folder / "calibration.npy", mmap_mode="r")
        return found

    @property
    def labels(self) -> Path:
        """JSON with the labels of the images; missing where the weights are random."""
        return self.folder / "labels.json"

    @property
    def weights(self) -> Path:
        """The network's state, as `torch.save` writes it."""
        return self.folder / "weights.pt"

    @property
    def traced(self) -> Path:
        """TorchScript of the network for one image, first layer merged."""
        return self.folder / "traced.pt"

    @property
    def reference(self) -> Path:
        """Outputs of the network itself for the first `PROGRAM_BATCHES[-1]` images, as `numpy.savez` writes them."""
        return self.folder / "reference.npz"

    def program(self, batch: int) -> Path:
        """A program of ``torch.export`` for one of `PROGRAM_BATCHES`, first layer merged."""
        return self.folder / f"program-{batch}.pt2"

    def batch(self, size: int) -> NDArray[np.float32]:
        """Return ``size`` images as the network takes them; few images come several times."""
        images = self.images
        return np.asarray(images[np.arange(size) % len(images)], dtype=np.float32)


def as_pair(outputs: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return boxes ``[B, A, 4]`` and scores ``[B, A, C]`` from the two outputs of an engine, in whichever order."""
    boxes, scores = sorted((np.asarray(output) for output in outputs), key=lambda output: output.shape[-1])
    return boxes, scores
