"""Pictures from anywhere: files, folders, patterns, tables, addresses, videos, cameras, arrays, PIL images, tensors."""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import numpy as np

from yolox.errors import DataError, UsageError, without_login
from yolox.prediction.image_tables import LIST_SUFFIXES, PARQUET_SUFFIX, TableImage, is_parquet, listed_paths, rows_of
from yolox.structures import Image, Size

_log = logging.getLogger(__name__)

Source: TypeAlias = Any
"""A path, folder, pattern, table of images, address, camera number, array, PIL image, tensor, encoded bytes, or several
of these."""

VIDEO_SUFFIXES = frozenset((".mp4", ".avi", ".mov", ".mkv", ".webm", ".mpg", ".mpeg", ".m4v", ".wmv", ".flv", ".ts"))
_ADDRESS = re.compile(r"(https?|rtsps?|rtmps?|udp|tcp|srt)://", re.IGNORECASE)


@dataclass(frozen=True)
class Picture:
    """One picture and where it comes from; the fields are those of `results.Result`."""

    image: Image
    name: str
    path: Path | None = None
    index: int = 0
    source: str | None = None
    rate: float | None = None


class Sources:
    """All pictures of a source, one after another; what is missing is refused before the first one is read.

    Args:
        source: What to look at, see `Source`.
        max_reconnects: How often in a row a camera or stream is opened again before it counts as ended.
        as_video: Open files as videos whatever their endings.

    Attributes:
        skipped: Files that could not be read, so far.
        live: Whether the source has no end of its own (cameras and streams).

    Raises:
        DataError: When a path does not exist or a folder holds no picture.
        UsageError: When the source is of no known kind.
    """

    def __init__(self, source: Source, max_reconnects: int = 10, as_video: bool = False) -> None:
        self._as_video = as_video
        self._files: list[str | Path] = []  # tables and videos
        self.skipped: list[Path] = []
        self.max_reconnects = max_reconnects
        self._items = list(self._expand(source))
        if not self._items:
            raise DataError("the source holds no picture; expected at least one. Check what is given.")
        self._streams = [item for item in self._items if isinstance(item, _Stream)]
        self.live = any(stream.live for stream in self._streams)

    def __len__(self) -> int:
        """Return the number of pictures and videos."""
        return len(self._items)

    @property
    def files(self) -> Iterator[str | Path]:
        """Files that will be read, one after another: images, videos and tables."""
        yield from self._files
        yield from (os.path.join(item.folder, item.name) for item in self._items if isinstance(item, ImageFile))

    @property
    def names(self) -> list[str]:
        """Names of the pictures and videos that are known before anything is read."""
        return [item.name for item in self._items]

    def __iter__(self) -> Iterator[Picture]:
        live = [item for item in self._items if isinstance(item, _Stream) and item.live]
        index = 0
        for item in self._items:
            if item in live and len(live) > 1:
                continue  # several of them are watched at the same time, below
            for picture in self._pictures(item, index):
                yield picture
                index += 1
        if len(live) > 1:
            from yolox.prediction.streams import watch_together

            yield from watch_together([(stream.address, stream.name) for stream in live], self.max_reconnects)

    def shared_items(self) -> Sequence[SharedImage]:
        """Return the images, each of which any process that sees the same files can read.

        Raises:
            UsageError: When there is something else: a video, a stream, an address, a picture in memory.
        """
        items = [item for item in self._items if isinstance(item, (ImageFile, TableImage))]
        if len(items) < len(self._items):
            name = next(item.name for item in self._items if isinstance(item, (_Array, _Stream)))
            raise UsageError(
                f"'{name}' is no image file; on a cluster expected image files, folders and tables of them."
            )
        return items

    def skip(self, item: SharedImage) -> None:
        """Count an image that cannot be read, and tell."""
        path = item.path if isinstance(item, ImageFile) else item.table / item.name
        self.skipped.append(path)
        _log.warning("skipped: '%s' is unreadable or truncated", path)

    def _pictures(self, item: _Item, index: int) -> Iterator[Picture]:
        if isinstance(item, _Array):
            yield Picture(item.image, item.name, index=index)
        elif isinstance(item, (ImageFile, TableImage)):
            image = item.read()
            if image is None:
                self.skip(item)
            else:
                yield Picture(image, item.name, item.path if isinstance(item, ImageFile) else None, index)
        else:
            from yolox.prediction.streams import frames

            yield from frames(item.address, item.name, item.live, self.max_reconnects)

    def _expand(self, source: Source, name: str = "") -> Iterator[_Item]:
        """Yield what a source consists of."""
        if isinstance(source, bool):
            raise UsageError(f"cannot look at {source!r}; expected a path, an address, a camera's number or a picture.")
        if isinstance(source, int):
            yield _Stream(source, f"camera{source}", live=True)
        elif isinstance(source, (str, os.PathLike)):
            yield from self._from_text(os.fspath(source))
        elif isinstance(source, (bytes, bytearray)):
            yield _Array(decode_bytes(bytes(source), name or "picture"), name or "picture0.jpg")
        elif isinstance(source, (Sequence, Iterator)):
            for number, part in enumerate(source):
                yield from self._expand(part, f"picture{number}.jpg")
        else:
            for number, image in enumerate(as_images(source)):
                yield _Array(image, name or f"picture{number}.jpg")

    def _from_text(self, text: str) -> Iterator[_Item]:
        if _ADDRESS.match(text):
            yield from _from_address(text)
            return
        if text.isdecimal() and len(text) < 10 and not Path(text).exists():
            yield _Stream(int(text), f"camera{text}", live=True)
            return
        path = Path(text).expanduser()
        if path.is_dir():
            yield from self._from_folder(path)
        elif path.is_file() and path.suffix.lower() in (*LIST_SUFFIXES, PARQUET_SUFFIX) and not self._as_video:
            yield from self._from_table(path)
        elif path.is_file() or path.is_char_device():
            yield self._from_file(path.parent, path.name)
        elif glob.has_magic(text):
            hits = [hit for hit in glob.glob(str(path), recursive=True) if os.path.isfile(hit)]
            if not hits:
                raise DataError(f"'{text}' matches no file; expected a pattern of images or videos.")
            root = Path(os.path.commonpath([os.path.dirname(hit) for hit in hits]))
            for hit in sorted(hits, key=lambda hit: hit.split("/")):
                yield self._from_file(root, Path(hit).relative_to(root).as_posix())
        else:
            raise DataError(f"'{text}' does not exist; expected an image, a folder, a video or an address.")

    def _from_table(self, table: Path) -> Iterator[_Item]:
        """Yield the images of a list or a Parquet table; relative paths in it begin at its folder."""
        self._files.append(table)
        for row in rows_of(table) if is_parquet(table) else listed_paths(table):
            if isinstance(row, TableImage):
                yield row
            elif _ADDRESS.match(row):
                yield from _from_address(row)
            else:
                yield self._from_file(table.parent, Path(row).expanduser().as_posix())

    def _from_folder(self, folder: Path) -> Iterator[_Item]:
        from yolox.data.image_files import IMAGE_SUFFIXES, image_names, is_read

        count = others = 0
        for name in image_names(folder):
            if is_read(name):
                count += 1
                yield self._from_file(folder, name)
            else:
                others += 1
        videos = sorted(file for file in folder.iterdir() if file.suffix.lower() in VIDEO_SUFFIXES and file.is_file())
        if others:
            _log.warning("%d image files of formats that are not read were left out of '%s'", others, folder)
        if not count and not videos and is_parquet(folder):
            yield from self._from_table(folder)
            return
        if not count and not videos:
            endings = ", ".join(sorted(IMAGE_SUFFIXES))
            raise DataError(f"'{folder}' holds no image; expected files ending in {endings}.")
        for file in videos:
            yield self._from_file(folder, file.name)

    def _from_file(self, folder: Path, name: str) -> ImageFile | _Stream:
        from yolox.data.image_files import IMAGE_SUFFIXES

        if not self._as_video and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
            return ImageFile(folder, name)  # at once: there may be a million
        path = folder / name
        is_device = path.is_char_device()
        if self._as_video or is_device or path.suffix.lower() in VIDEO_SUFFIXES:
            self._files.append(path)
            return _Stream(str(path), name, live=is_device)
        return ImageFile(folder, name)


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image file; every machine that sees the file can read it.

    Args:
        folder: Where its path begins; one for all files of a source, since there may be millions.
        name: The path from there, which is also what to call it.
    """

    folder: Path
    name: str

    @property
    def path(self) -> Path:
        """Where it is."""
        return self.folder / self.name

    def read(self) -> Image | None:
        """Return the image ``[H, W, 3]`` BGR uint8, or None when it cannot be read."""
        from yolox.data.image_files import read_file_size, read_image

        size = read_file_size(self.path)
        return None if size is None else read_image(self.path, size)


@dataclass(frozen=True, eq=False)
class _Array:
    image: Image
    name: str


@dataclass(frozen=True)
class _Stream:
    address: str | int
    name: str
    live: bool


SharedImage: TypeAlias = ImageFile | TableImage
"""What every machine of a cluster can read."""

_Item: TypeAlias = SharedImage | _Array | _Stream


def _from_address(text: str) -> Iterator[_Array | _Stream]:
    """Yield the picture behind an address, or the stream: whatever is no image file is opened as a video."""
    from yolox.data.image_files import IMAGE_SUFFIXES
    from yolox.downloads import read_address

    parts = urlsplit(text)
    name = Path(parts.path).name or parts.hostname or "stream"
    suffix = Path(name).suffix.lower()
    if parts.scheme.lower().startswith("http") and suffix in IMAGE_SUFFIXES:
        yield _Array(decode_bytes(read_address(text), without_login(text)), name)
    else:
        yield _Stream(text, name, live=suffix not in VIDEO_SUFFIXES)


def decode_bytes(data: bytes, name: str) -> Image:
    """Return the image in the bytes of an image file.

    Raises:
        DataError: When they are none, or not whole.
    """
    from yolox.data.image_files import decode

    image = decode(data, Size(1, 1))
    if image is None:
        raise DataError(f"'{name}' is no readable image ({len(data)} bytes); expected a whole JPEG, PNG or the like.")
    return image


def as_images(value: Any) -> Iterator[Image]:
    """Yield the images ``[H, W, 3]`` BGR uint8 in an array, a PIL image or a tensor.

    Arrays are BGR, ``[H, W]``, ``[H, W, 1]``, ``[H, W, 3]``, ``[H, W, 4]`` or a batch ``[N, H, W, 3]``, uint8. Tensors
    are RGB, ``[3, H, W]`` or ``[N, 3, H, W]``, uint8 or floats from 0 to 1 (as torchvision has them).

    Raises:
        UsageError: For anything else.
    """
    library = type(value).__module__.partition(".")[0]
    if library == "torch":
        array = value.detach().cpu().float().numpy() if value.is_floating_point() else value.detach().cpu().numpy()
        if array.ndim not in (3, 4) or array.shape[-3] != 3:
            raise UsageError(f"a tensor of shape {tuple(array.shape)} arrived; expected RGB [3, H, W] or [N, 3, H, W].")
        if array.dtype.kind == "f":
            _check_unit(array)
            array = np.round(255.0 * array)
        for image in array.reshape(-1, *array.shape[-3:]):
            yield np.ascontiguousarray(image[::-1].transpose(1, 2, 0), dtype=np.uint8)
    elif library == "PIL":
        from PIL import ImageOps

        upright = ImageOps.exif_transpose(value).convert("RGB")
        yield np.ascontiguousarray(np.asarray(upright)[:, :, ::-1])
    elif isinstance(value, np.ndarray):
        yield from _from_array(value)
    else:
        raise UsageError(
            f"a {type(value).__name__} arrived; expected a path, address, camera number, array, PIL image or tensor."
        )


def _check_unit(array: np.ndarray[Any, Any]) -> None:
    if array.size and not (float(array.min()) >= 0.0 and float(array.max()) <= 1.0):
        raise UsageError(
            f"a float tensor with values from {array.min():g} to {array.max():g} arrived; expected 0 to 1, or uint8."
        )


def _from_array(array: np.ndarray[Any, Any]) -> Iterator[Image]:
    if array.dtype != np.uint8 or array.ndim not in (2, 3, 4) or 0 in array.shape:
        raise UsageError(
            f"an array of shape {array.shape} and type {array.dtype} arrived; expected uint8 BGR [H, W, 3] or "
            "[N, H, W, 3], or grey [H, W]."
        )
    if array.ndim == 4:
        for image in array:
            yield from _from_array(image)
        return
    image = array[:, :, None] if array.ndim == 2 else array
    if image.shape[2] == 1:
        image = np.repeat(image, 3, axis=2)
    if image.shape[2] not in (3, 4):
        raise UsageError(f"an array of shape {array.shape} arrived; expected 1, 3 or 4 channels in the last axis.")
    yield np.ascontiguousarray(image[:, :, :3])
