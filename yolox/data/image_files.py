"""Image files: decoding with care for truncation and orientation, and the size from the header alone."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import cv2
import numpy as np

from yolox.structures import Image, Size

__all__ = ["decode", "read_file_size", "read_image"]

_REDUCED = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}
_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG"
# start-of-frame markers carry the size; C4, C8 and CC are other things
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def read_image(path: Path, expected: Size, at_least: Size | None = None) -> Image | None:
    """Return the image, or ``None`` when the file is missing, unreadable or truncated.

    Args:
        path: The file.
        expected: Size that the labels refer to. It decides whether an orientation tag applies: if only the raw pixels
            have that size, the tag is left alone.
        at_least: When given, a JPEG may be decoded at 1/2, 1/4 or 1/8 as long as it stays at least this large.
    """
    try:
        data = path.read_bytes()
    except OSError:
        return None
    factor = 1
    if at_least is not None and data[:3] == _JPEG:
        smaller = min(expected.height // max(1, at_least.height), expected.width // max(1, at_least.width))
        factor = max((step for step in _REDUCED if step <= smaller), default=1)
    return decode(data, expected, factor)


def decode(data: bytes, expected: Size, factor: int = 1) -> Image | None:
    """Return the decoded bytes at ``1 / factor``, or ``None``; see ``read_image``."""
    if not _is_whole(data):
        return None
    flags = cv2.IMREAD_COLOR if factor == 1 else _REDUCED[factor]
    image = _imdecode(data, flags)
    if image is None:
        return None
    height, width = image.shape[:2]
    wanted = (-(-expected.height // factor), -(-expected.width // factor))
    if (height, width) != wanted and (width, height) == wanted:
        return _imdecode(data, flags | cv2.IMREAD_IGNORE_ORIENTATION)
    return image


def _imdecode(data: bytes, flags: int) -> Image | None:
    try:
        return cast("Image | None", cv2.imdecode(np.frombuffer(data, np.uint8), flags))
    except cv2.error:
        return None


def _is_whole(data: bytes) -> bool:
    """Return whether the end mark is there: OpenCV decodes a truncated file to grey without a word."""
    if data[:3] == _JPEG:
        # a thumbnail in the header has an end mark too, so look behind the last start of a scan
        return data.endswith(b"\xff\xd9") or data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda") > 0
    if data[:4] == _PNG:
        return b"IEND" in data[-64:]
    return bool(data)


def read_file_size(path: Path) -> Size | None:
    """Return the size as ``read_image`` shows it (orientation applied), from the header where the format is known."""
    try:
        with path.open("rb") as handle:
            head = handle.read(1 << 18)
    except OSError:
        return None
    if head[:4] == _PNG and len(head) >= 24:
        return Size(int.from_bytes(head[20:24], "big"), int.from_bytes(head[16:20], "big"))
    size = _jpeg_size(head) if head[:3] == _JPEG else None
    if size is not None:
        return size
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    return None if image is None else Size(*image.shape[:2])


def _jpeg_size(head: bytes) -> Size | None:
    """Return the size of a JPEG, or ``None`` to have it decoded: header too long, or turned by an Exif tag."""
    place = 2
    while place + 9 < len(head) and head[place] == 0xFF:
        marker, length = head[place + 1], int.from_bytes(head[place + 2 : place + 4], "big")
        if marker == 0xE1 and head[place + 4 : place + 8] == b"Exif" and _may_turn(head[place : place + length]):
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
