"""Videos, cameras and network streams: read to their end, or opened again after a dropped connection."""

from __future__ import annotations

import logging
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

from yolox.errors import DataError, without_login
from yolox.prediction.sources import Picture
from yolox.structures import Image

if TYPE_CHECKING:
    import cv2

_log = logging.getLogger(__name__)

OPEN_TIMEOUT_MS, READ_TIMEOUT_MS = 10_000, 10_000
FIRST_DELAY_S, LONGEST_DELAY_S = 0.25, 10.0
_PORTS = {"http": 80, "https": 443, "rtsp": 554, "rtsps": 322, "rtmp": 1935}


def frames(
    address: str | int, name: str, live: bool, max_reconnects: int, *, among_others: bool = False
) -> Iterator[Picture]:
    """Yield the frames of a video, or of a camera or stream for as long as it can be reached.

    Args:
        address: A file, a network address or the number of a camera.
        name: Its name in results.
        live: Open it again when it breaks off; a video ends instead.
        max_reconnects: How often in a row that is tried without getting a frame.
        among_others: Other threads of this process open streams too: a server that does not answer is not handed to
            OpenCV, which opens one stream at a time and would keep the others waiting.

    Raises:
        DataError: When it cannot be opened, or gives no frame at all.
    """
    number = 0
    for image, rate in _images(address, name, live, max_reconnects, among_others):
        yield Picture(image, _frame_name(name, number), _file(address), number, name, rate)
        number += 1
    if number == 0:
        raise DataError(f"'{without_login(address)}' gave no picture; expected at least one.")


def watch_together(streams: Sequence[tuple[str | int, str]], max_reconnects: int) -> Iterator[Picture]:
    """Yield the newest frame of several live streams in turn, each read by a thread of its own.

    A stream that is slow, drops its connection or ends holds up no other one; frames that nobody had time for are
    left out.

    Args:
        streams: Address and name of each.
        max_reconnects: See `frames`.

    Raises:
        DataError: When none of them gave a frame.
    """
    news = threading.Condition()
    readers = [_Reader(address, name, max_reconnects, news) for address, name in streams]
    for reader in readers:
        reader.start()
    total = 0
    try:
        while True:
            with news:
                news.wait_for(lambda: any(reader.newest or reader.ended for reader in readers))
                fresh = [picture for reader in readers if (picture := reader.take()) is not None]
                if not fresh and all(reader.ended for reader in readers):
                    break
                if not fresh:
                    news.wait(0.5)
            total += len(fresh)
            yield from fresh
    finally:
        for reader in readers:
            reader.stop()
    if total == 0:
        raise DataError(f"none of the {len(readers)} streams gave a picture; expected at least one.")


class _Reader(threading.Thread):
    """Keeps the newest frame of one live stream."""

    def __init__(self, address: str | int, name: str, max_reconnects: int, news: threading.Condition) -> None:
        super().__init__(name=f"stream {name}", daemon=True)
        self.newest: Picture | None = None
        self.ended = False
        self._stream = (address, name, True, max_reconnects)
        self._news = news
        self._stopped = threading.Event()

    def run(self) -> None:
        """Read until the stream ends or `stop` is called."""
        try:
            for picture in frames(*self._stream, among_others=True):
                with self._news:
                    self.newest = picture
                    self._news.notify()
                if self._stopped.is_set():
                    break
        except DataError as error:
            _log.warning("%s", error)
        finally:
            with self._news:
                self.ended = True
                self._news.notify()

    def take(self) -> Picture | None:
        """Return the newest frame, once."""
        picture, self.newest = self.newest, None
        return picture

    def stop(self) -> None:
        """Have the thread end after its next frame."""
        self._stopped.set()


def _images(
    address: str | int, name: str, live: bool, max_reconnects: int, among_others: bool
) -> Iterator[tuple[Image, float | None]]:
    """Yield frames and the rate of their video; open a live stream again when it breaks off."""
    failures = 0
    while True:
        capture = None if among_others and not _answers(address) else _open(address)
        received = False
        if capture is not None:
            rate = _rate(capture)
            try:
                while (image := _next(capture)) is not None:
                    received, failures = True, 0
                    yield image, rate
            finally:
                capture.release()
        if not live:
            if capture is None:
                raise DataError(f"cannot open video '{without_login(address)}'; expected a video that OpenCV reads.")
            return
        failures += 1
        if failures > max_reconnects:
            if not received and capture is None:
                _log.warning("'%s' could not be opened; %d attempts in all", name, failures)
            return
        delay = min(FIRST_DELAY_S * 2 ** (failures - 1), LONGEST_DELAY_S)
        _log.warning("'%s' broke off or cannot be opened; attempt %d in %.2g s", name, failures, delay)
        time.sleep(delay)


def _answers(address: str | int) -> bool:
    """Return whether the server of a stream takes a connection and begins to answer, where that can be asked."""
    try:
        parts = urlsplit(str(address))
        port = parts.port or _PORTS.get(parts.scheme)
        proxy = parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(parts.hostname or "")
        if parts.hostname is None or port is None or proxy:
            return True
        target = f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}"
        requests = {
            "http": f"GET {target} HTTP/1.1\r\nHost: {parts.hostname}:{port}\r\nConnection: close\r\n\r\n",
            "rtsp": f"OPTIONS rtsp://{parts.hostname}:{port}{target} RTSP/1.0\r\nCSeq: 1\r\n\r\n",
        }
        request = requests.get(parts.scheme)
        with socket.create_connection((parts.hostname, port), timeout=OPEN_TIMEOUT_MS / 1000) as connection:
            if request is None:
                return True
            connection.sendall(request.encode())
            return bool(connection.recv(1))
    except (OSError, ValueError):  # ValueError: no port or name that an address can have
        return False


def _open(address: str | int) -> cv2.VideoCapture | None:
    import cv2

    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, OPEN_TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, READ_TIMEOUT_MS]
    remote = isinstance(address, str) and "://" in address
    try:
        capture = cv2.VideoCapture(address, cv2.CAP_FFMPEG, limits) if remote else cv2.VideoCapture(address)
    except cv2.error:
        return None
    if capture.isOpened():
        return capture
    capture.release()
    return None


def _next(capture: cv2.VideoCapture) -> Image | None:
    good, image = capture.read()
    return cast("Image", image) if good else None


def _rate(capture: cv2.VideoCapture) -> float | None:
    import cv2

    rate = float(capture.get(cv2.CAP_PROP_FPS))
    return rate if 0.0 < rate < 1000.0 else None


def _frame_name(name: str, number: int) -> str:
    path = Path(name)
    return path.with_name(f"{path.stem}_{number:06d}.jpg").as_posix()


def _file(address: str | int) -> Path | None:
    return Path(address) if isinstance(address, str) and "://" not in address else None
