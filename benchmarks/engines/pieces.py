"""Engines whose models have one batch size, behind the interface of our own runners."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.engines.inputs import as_pair
from yolox.inference.backends.base import Arrays, Settings, filled_up

Run = Callable[[NDArray[np.float32]], Sequence[Any]]
"""Maps one piece, ``[size, 3, H, W]``, to boxes and scores in either order, which need not outlive the next call."""


@dataclass(frozen=True)
class PieceRunner:
    """Cuts a batch into pieces of a size that the engine has a model for, and runs them on one or several streams.

    Args:
        load: Takes the size of a piece and a number of threads, and gives a model that runs such pieces.
        sizes: Sizes of pieces that there are models for.
        settings: How to run; ``threads`` are those of all streams together.
        has_streams: Whether several models can run at a time in threads of one process.
    """

    load: Callable[[int, int], Run]
    sizes: tuple[int, ...]
    settings: Settings
    has_streams: bool = False
    int8_share: float | None = None
    _models: list[Run] = field(default_factory=list, init=False, repr=False)
    _shapes: list[tuple[int, ...]] = field(default_factory=list, init=False, repr=False)

    def __call__(self, *inputs: Any) -> Arrays:
        """Run one batch."""
        (images,) = inputs
        size, streams = self.settings.micro_batch or 1, self.settings.streams
        if not self._models:
            self._models.extend(self.load(size, max(1, self.settings.threads // streams)) for _ in range(streams))
            self._shapes.extend(output.shape[1:] for output in self._piece(0, images, 0, size))
        results = tuple(np.empty((len(images), *shape), np.float32) for shape in self._shapes)

        def run(stream: int) -> None:
            for start in range(0, len(images), size)[stream::streams]:
                for result, output in zip(results, self._piece(stream, images, start, size), strict=True):
                    result[start : start + size] = output[: len(images) - start]

        if streams == 1:
            run(0)
        else:
            with ThreadPoolExecutor(streams) as pool:
                list(pool.map(run, range(streams)))
        return results

    def _piece(self, stream: int, images: NDArray[np.float32], start: int, size: int) -> Arrays:
        return as_pair(self._models[stream](np.ascontiguousarray(filled_up(images[start : start + size], size))))

    def candidates(self, batch_size: int, threads: int) -> Sequence[Settings]:
        """Every size of a piece that the batch fills, on one stream or on as many as there are threads."""
        sizes = [size for size in self.sizes if size <= batch_size] or [self.sizes[0]]
        streams = [1, threads] if self.has_streams and threads > 1 else [1]
        return tuple(
            Settings(threads, count, size)
            for size in sizes
            for count in streams
            if count == 1 or size * count <= batch_size
        )

    def configured(self, settings: Settings) -> PieceRunner:
        """Return a runner of the same model with other settings."""
        return replace(self, settings=settings)

    def save(self, folder: Path) -> Mapping[str, Any]:
        """Write nothing: the files of these engines are there already."""
        return {}
