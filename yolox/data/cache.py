"""Caches of resized images: one mapped file that all workers share, in memory or on disk."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import zlib
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from yolox.cpu.cgroups import available_memory
from yolox.data.coco_dataset import CocoDataset
from yolox.data.mapped_file import MappedFile
from yolox.errors import DataError
from yolox.files import cache_root
from yolox.structures import Image, Size

_LOG = logging.getLogger(__name__)
_VERSION = 1
_RESERVE = 0.05  # share of the free space that stays free
_EASY = 0.2  # share of the available memory that a cache nobody asked for may take
_IN_MEMORY = 1  # the key of entries that live no longer than this run


def open_cache(
    kind: Literal["ram", "disk", "off"] | None,
    dataset: CocoDataset,
    target: Size,
    *,
    reduced_decode: bool,
    copies: int = 1,
) -> ResizedImages | None:
    """Return the cache of a data set's images fitted into ``target``, or ``None``.

    Args:
        kind: ``ram`` lives as long as this process; ``disk`` stays in ``cache_root()`` for later runs; ``off`` is none;
            ``None`` is ``ram`` where that takes a small share of the free memory, else none.
        dataset: The images.
        target: What they are fitted into.
        reduced_decode: Whether they were decoded at a fraction of their size; such pixels differ a little.
        copies: Processes that each hold a cache in memory.

    Raises:
        DataError: When there is not enough space, or the folder cannot be written.
    """
    if kind == "off":
        return None
    layout = _Layout(dataset, target)
    if kind is None:
        available = available_memory()
        if available is None or layout.num_bytes * copies > _EASY * available:
            return None
        _LOG.info("keeping the resized images in memory, %s", _gigabytes(layout.num_bytes))
        return ResizedImages(dataset, layout, MappedFile(layout.num_bytes), checked=False)
    if kind == "ram":
        _check_space(layout.num_bytes * copies, available_memory(), "memory", "use cache=disk, or none")
        return ResizedImages(dataset, layout, MappedFile(layout.num_bytes), checked=False)
    path = _disk_file(dataset, layout, target, reduced_decode)
    return ResizedImages(dataset, layout, MappedFile(layout.num_bytes, path), checked=True)


class _Layout:
    """Where each image lies in the file: keys, checksums, then pixels one image after the other."""

    def __init__(self, dataset: CocoDataset, target: Size) -> None:
        sizes = dataset.sizes.astype(np.float64)
        # the same arithmetic as image_ops.fitted_size, for all images at once
        ratio = np.minimum(target.height / sizes[:, 0], target.width / sizes[:, 1])
        self.shapes = np.maximum(1, (sizes * ratio[:, None]).astype(np.int32))
        lengths = self.shapes.prod(axis=1, dtype=np.int64) * 3
        self.num_images = len(sizes)
        self.first_pixel = 12 * self.num_images
        self.starts = self.first_pixel + np.concatenate([[0], np.cumsum(lengths)])
        self.num_bytes = int(self.starts[-1])


class ResizedImages:
    """Resized images in a mapped file; an entry that is stale or damaged counts as absent and is made again.

    Args:
        dataset: The images.
        layout: Where each lies.
        file: The bytes.
        checked: Whether entries may be stale or damaged, as on disk.
    """

    def __init__(self, dataset: CocoDataset, layout: _Layout, file: MappedFile, *, checked: bool) -> None:
        self._dataset = dataset
        self._layout = layout
        self._file = file
        self._checked = checked
        self._verified = bytearray(layout.num_images)

    def get(self, index: int) -> Image | None:
        """Return the kept image (not to be written to), or ``None``."""
        keys, sums, pixels = self._open(index)
        if keys[index] == 0 or keys[index] != self._key(index):
            return None
        if self._checked and not self._verified[index]:
            if zlib.crc32(pixels.data) != sums[index]:
                return None
            self._verified[index] = 1
        return pixels

    def put(self, index: int, image: Image) -> None:
        """Keep an image. Several processes may write the same one: they write the same bytes."""
        keys, sums, pixels = self._open(index)
        keys[index] = 0
        pixels[...] = image
        if self._checked:
            sums[index] = zlib.crc32(pixels.data)
        keys[index] = self._key(index)

    def _open(self, index: int) -> tuple[NDArray[np.uint64], NDArray[np.uint32], Image]:
        content = self._file.bytes
        num_images, starts = self._layout.num_images, self._layout.starts
        height, width = self._layout.shapes[index]
        keys = content[: 8 * num_images].view(np.uint64)
        sums = content[8 * num_images : self._layout.first_pixel].view(np.uint32)
        pixels = content[starts[index] : starts[index + 1]].reshape(height, width, 3)
        return keys, sums, pixels

    def _key(self, index: int) -> int:
        """Return what an entry must carry to be valid: on disk, a digest of the file's identity."""
        if not self._checked:
            return _IN_MEMORY
        path = self._dataset.path(index)
        try:
            state = path.stat()
        except OSError:
            return 0
        text = f"{path}|{state.st_mtime_ns}|{state.st_size}"
        return (
            int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little") | 1
        )


def _disk_file(dataset: CocoDataset, layout: _Layout, target: Size, reduced_decode: bool) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in (str(dataset.image_dir.absolute()), str(_VERSION), str(tuple(target)), str(reduced_decode)):
        digest.update(part.encode("utf-8", "surrogatepass") + b"\0")
    digest.update(dataset.names)
    digest.update(dataset.sizes.tobytes())
    path = cache_root() / f"images-{target.height}x{target.width}-{digest.hexdigest()}.bin"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        present = path.stat().st_size if path.exists() else 0
        if present != layout.num_bytes:
            free = shutil.disk_usage(path.parent).free
            remedy = "set YOLOX_CACHE to a folder with more space, or use no cache"
            _check_space(layout.num_bytes - present, free, f"'{path.parent}'", remedy)
            with path.open("ab") as handle:
                # reserved now: a mapped file that meets a full disk kills the process
                _reserve(handle.fileno(), layout.num_bytes)
    except OSError as error:
        raise DataError(
            f"cannot make the image cache '{path}': {error.strerror}. Set YOLOX_CACHE to a writable folder with "
            f"{_gigabytes(layout.num_bytes)} free, or use no cache."
        ) from error
    return str(path)


def _reserve(descriptor: int, num_bytes: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, num_bytes)
    os.ftruncate(descriptor, num_bytes)


def _check_space(needed: int, available: int | None, place: str, remedy: str) -> None:
    if available is not None and needed > available * (1 - _RESERVE):
        raise DataError(
            f"the image cache needs {_gigabytes(needed)} of {place}, {_gigabytes(available)} are free; {remedy}."
        )


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB"
