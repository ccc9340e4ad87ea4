"""Image files: which files are images, their size from the header alone, and decoding to 8-bit BGR."""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from yolox.structures import Image, Size

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2")
)
"""Endings (lower case) of the files that are read as images."""
OTHER_IMAGE_SUFFIXES = frozenset(
    (".gif", ".avif", ".heic", ".heif", ".jxl", ".svg", ".psd", ".dng", ".raw", ".cr2", ".nef", ".arw", ".exr", ".hdr")
)
"""Endings of image files that are left out; whoever lists a folder says how many there are."""
MAX_PIXELS = 178_956_970
"""Larger images are refused from their header: 512 MiB as 8-bit BGR, the limit at which Pillow refuses too."""
_MAX_EXACT_PIXELS = 1 << 25
"""Larger images are decoded to 8-bit colour at once: four floats a pixel would take gigabytes for a small file."""
_STRIPE_ROWS = 64
_REDUCED = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}
_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_TIFF = (b"II*\0", b"MM\0*")
# start-of-frame markers carry the size; C4, C8 and CC are other things
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# what ends the compressed data of a scan: any marker but an escaped FF and the restart markers
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_HEAD_BYTES = 1 << 18
_BEHIND = 114.0  # grey level behind transparent pixels: that of the border around a letterboxed image


def list_images(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the images below a folder, and the image files of formats that are not read; both sorted, none hidden."""
    images: list[Path] = []
    others: list[Path] = []
    for name in image_names(folder):
        (images if is_read(name) else others).append(Path(folder, name))
    return images, others


def is_read(name: str) -> bool:
    """Return whether files with the ending of ``name`` are read as images."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def image_names(folder: Path) -> Iterator[str]:
    """Yield the paths of the image files below a folder, of any format, from there: sorted as paths, none hidden."""
    endings = IMAGE_SUFFIXES | OTHER_IMAGE_SUFFIXES
    seen: set[str] = set()
    waiting = [("", _entries(str(folder), seen))]
    while waiting:
        place, entries = waiting[-1]
        name, is_folder = next(entries, ("", False))
        if not name:
            waiting.pop()
        elif is_folder:
            inner = f"{place}{name}/"
            waiting.append((inner, _entries(os.path.join(folder, inner), seen)))
        elif os.path.splitext(name)[1].lower() in endings:
            yield place + name


def _entries(place: str, seen: set[str]) -> Iterator[tuple[str, bool]]:
    """Yield the names in a folder that are not hidden, sorted, and whether each is a folder; nothing if it was seen."""
    real = os.path.realpath(place)
    if real in seen:  # a link to a folder above
        return
    seen.add(real)
    names, folders = [], set()
    with suppress(OSError), os.scandir(place) as entries:  # a folder that cannot be read holds nothing for us
        for entry in entries:
            if not entry.name.startswith(".") and entry.name != "__MACOSX":
                names.append(entry.name)
                linked = entry.is_symlink()
                if os.path.isdir(entry.path) if linked else entry.is_dir():
                    folders.add(entry.name)
    names.sort()
    yield from ((name, name in folders) for name in names)


def read_image(path: Path, expected: Size, at_least: Size | None = None) -> Image | None:
    """Return the image, or ``None`` when the file is missing, unreadable, truncated or too large.

    Args:
        path: The file.
        expected: Size that the labels refer to. It decides whether an orientation tag applies: if only the raw pixels
            have that size, the tag is left alone.
        at_least: When given, a JPEG may be decoded at 1/2, 1/4 or 1/8 as long as it stays at least this large.
    """
    try:
        data = path.read_bytes()
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return None
    factor = 1
    if at_least is not None and data[:3] == _JPEG:
        smaller = min(expected.height // max(1, at_least.height), expected.width // max(1, at_least.width))
        factor = max((step for step in _REDUCED if step <= smaller), default=1)
    return decode(data, expected, factor)


def decode(data: bytes, expected: Size, factor: int = 1) -> Image | None:
    """Return the decoded bytes at ``1 / factor``, or ``None``; see ``read_image``.

    Grey, palette, 16-bit and float images become 8-bit BGR; transparent pixels show a grey ground.
    """
    jpeg = data[:3] == _JPEG
    size, orientation = (_jpeg_size(data), 1) if jpeg else (None, 1)
    if size is None:
        size, orientation = _header(data)
    if size is None or size.height * size.width > _most_pixels(data) or not _is_whole(data):
        return None
    if jpeg:
        return _decode_jpeg(data, expected, factor)
    if data[:4] in _TIFF and orientation != 1:
        return _decode_with_pillow(data)  # OpenCV 5 fails on turned TIFF files
    large = data[:8] != _PNG and size.height * size.width > _MAX_EXACT_PIXELS
    raw = _imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION if large else cv2.IMREAD_UNCHANGED)
    image = None if raw is None else _to_bgr(raw)
    return None if image is None else _turned(image, orientation, expected)


def _decode_jpeg(data: bytes, expected: Size, factor: int) -> Image | None:
    flags = cv2.IMREAD_COLOR if factor == 1 else _REDUCED[factor]
    image = _imdecode(data, flags)
    if image is None:
        return None
    height, width = image.shape[:2]
    wanted = (-(-expected.height // factor), -(-expected.width // factor))
    if (height, width) != wanted and (width, height) == wanted:
        return _imdecode(data, flags | cv2.IMREAD_IGNORE_ORIENTATION)
    return cast("Image", image)


def _imdecode(data: bytes, flags: int) -> NDArray[Any] | None:
    try:
        return cast("NDArray[Any] | None", cv2.imdecode(np.frombuffer(data, np.uint8), flags))
    except cv2.error:
        return None


def _decode_with_pillow(data: bytes) -> Image | None:
    """Return the pixels as Pillow decodes them: a TIFF file's orientation tag is applied."""
    from PIL import Image as PillowImage

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with PillowImage.open(io.BytesIO(data)) as opened:
                return np.ascontiguousarray(np.asarray(opened.convert("RGB"))[..., ::-1])
    except (OSError, ValueError, SyntaxError, PillowImage.DecompressionBombError):
        return None


def _to_bgr(raw: NDArray[Any]) -> Image | None:
    """Return pixels of any depth and 1, 3 or 4 channels as 8-bit BGR; ``None`` for other channels."""
    channels = 1 if raw.ndim == 2 else raw.shape[2]
    if channels not in (1, 3, 4):
        return None
    if channels == 3 and raw.dtype == np.uint8:
        return raw
    scale = _scale_of(raw)
    image = np.empty((*raw.shape[:2], 3), np.uint8)
    for row in range(0, len(raw), _STRIPE_ROWS):  # the floats of a whole image would take several times its memory
        levels = _levels(raw[row : row + _STRIPE_ROWS], scale)
        if channels == 4:
            opacity = levels[..., 3:].astype(np.float32) / 255
            levels = np.rint(levels[..., :3] * opacity + _BEHIND * (1 - opacity)).astype(np.uint8)
        image[row : row + _STRIPE_ROWS] = levels if channels > 1 else cv2.cvtColor(levels, cv2.COLOR_GRAY2BGR)
    return image


def _scale_of(raw: NDArray[Any]) -> float:
    """Return what makes levels from 0 to 255 of an image's numbers."""
    if raw.dtype == np.uint8:
        return 1.0
    if raw.dtype == np.uint16:
        # cameras store 12 bits in 16: scaled by 65535 such an image would be black
        return 255.0 / (4095 if raw.max(initial=0) <= 4095 else 65535)
    top = max((float(_finite(row).max(initial=0.0)) for row in raw), default=0.0)
    return 255.0 if 0 < top <= 1 else 255.0 / max(255.0, top)


def _levels(raw: NDArray[Any], scale: float) -> NDArray[np.uint8]:
    if raw.dtype == np.uint8:
        return raw
    values = _finite(raw) if raw.dtype.kind == "f" else raw
    return np.rint(np.clip(values * scale, 0, 255)).astype(np.uint8)


def _finite(raw: NDArray[Any]) -> NDArray[np.float64]:
    return np.nan_to_num(raw.astype(np.float64), posinf=0.0, neginf=0.0)


def _turned(image: Image, orientation: int, expected: Size) -> Image:
    """Return the image as its Exif orientation (1 to 8) asks, unless the labels mean the raw pixels."""
    height, width = image.shape[:2]
    if orientation in (5, 6, 7, 8):
        if height != width and (height, width) == expected:
            return image
        image = image.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)


def _is_whole(data: bytes) -> bool:
    """Return whether the end mark is there: OpenCV decodes a truncated file to grey without a word.

    What lies behind the end mark (thumbnails, videos of a phone, padding) does not matter.
    """
    if data[:3] == _JPEG:
        return data.endswith(b"\xff\xd9") or _jpeg_ends(data)
    if data[:8] == _PNG:
        place = len(_PNG)
        while place + 12 <= len(data):
            if data[place + 4 : place + 8] == b"IEND":
                return True
            place += 12 + int.from_bytes(data[place : place + 4], "big")
        return False
    return bool(data)


def _jpeg_ends(data: bytes) -> bool:
    """Return whether a JPEG's end mark follows its scans, found by walking over its segments."""
    place = 2
    while place + 4 <= len(data):
        if data[place] != 0xFF:
            # padding or damage between segments: decoders look for the next marker
            found = _AFTER_SCAN.search(data, place)
            if found is None:
                return False
            place = found.start()
            continue
        marker = data[place + 1]
        if marker == 0xFF:
            place += 1
            continue
        if marker == _END_OF_IMAGE:
            return True
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if marker == _START_OF_SCAN:
            found = _AFTER_SCAN.search(data, place)
            if found is None:
                return False
            place = found.start()
    return data[place : place + 2] == b"\xff\xd9"


def read_file_size(path: Path) -> Size | None:
    """Return the size as ``read_image`` shows it (orientation applied), from the header; ``None`` if unreadable."""
    try:
        with path.open("rb") as handle:
            head = handle.read(_HEAD_BYTES)
            size = _jpeg_size(head, unless_turned=True) if head[:3] == _JPEG else None
            if size is not None:
                return size
            handle.seek(0)
            raw, orientation = _header(handle)
    except (OSError, ValueError):
        return None
    if raw is None or orientation < 5 or head[:4] in _TIFF:  # Pillow gives the size of a turned TIFF as it is shown
        return raw
    return Size(raw.width, raw.height)


def is_turned(path: Path) -> bool:
    """Return whether an orientation tag swaps height and width of an image."""
    try:
        with path.open("rb") as handle:
            return _header(handle)[1] >= 5
    except (OSError, ValueError):
        return False


def why_unreadable(path: Path) -> str:
    """Return in a few words why ``read_image`` does not give an image."""
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except (OSError, ValueError):
        return "missing"
    size = read_file_size(path)
    if size is None:
        return "not an image, or damaged" if head else "empty"
    if size.height * size.width > _most_pixels(head):
        return f"{size.width}x{size.height} pixels, more than the limit of {_most_pixels(head)}"
    return "truncated or damaged"


def _most_pixels(head: bytes) -> int:
    """Return how many pixels an image may have: the decoders of WebP and JPEG 2000 take 10 and 20 bytes for each."""
    return 2**30 // {b"RIFF": 10, b"\0\0\0\x0c": 20, b"\xffO\xffQ": 20}.get(head[:4], 6)  # 6: MAX_PIXELS


def _header(source: Any) -> tuple[Size | None, int]:
    """Return size and Exif orientation from the header of any format that Pillow knows; nothing is decoded.

    Args:
        source: The file's bytes, or an open binary file.
    """
    from PIL import Image as PillowImage

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images: MAX_PIXELS decides
            with PillowImage.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
                size = Size(opened.height, opened.width)
                tagged = opened.format in ("JPEG", "MPO", "PNG", "WEBP", "TIFF")  # whose tag other tools apply
                orientation = opened.getexif().get(0x0112, 1) if tagged else 1
    except PillowImage.DecompressionBombError:
        return Size(MAX_PIXELS, MAX_PIXELS), 1
    except Exception:  # noqa: BLE001 - whatever a foreign file makes a decoder raise, it is no image
        return None, 1
    return size, orientation if orientation in range(1, 9) else 1


def _jpeg_size(head: bytes, *, unless_turned: bool = False) -> Size | None:
    """Return the size of a JPEG, or ``None`` for a longer header, or (if asked) a file that an Exif tag may turn."""
    place = 2
    while place + 9 < len(head) and head[place] == 0xFF:
        marker, length = head[place + 1], int.from_bytes(head[place + 2 : place + 4], "big")
        exif = marker == 0xE1 and head[place + 4 : place + 8] == b"Exif"
        if unless_turned and exif and _may_turn(head[place : place + length]):
            return None
        if marker in _FRAMES:
            return Size(
                int.from_bytes(head[place + 5 : place + 7], "big"), int.from_bytes(head[place + 7 : place + 9], "big")
            )
        place += 2 + length
    return None


def _may_turn(segment: bytes) -> bool:
    """Return whether an Exif segment holds the orientation tag (0x0112) at all."""
    return b"\x01\x12\x00\x03" in segment or b"\x12\x01\x03\x00" in segment
